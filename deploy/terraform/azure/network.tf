# The virtual network, unless subnets are given, and the private endpoints by which Redis, storage and Key Vault are reached.

locals {
  creates_network    = var.create_network != null ? var.create_network : var.worker_subnet_id == null
  prefix_length      = tonumber(split("/", var.vnet_cidr)[1])
  virtual_network_id = local.creates_network ? azurerm_virtual_network.this[0].id : one(regex("^(.*)/subnets/[^/]+$", var.redis_subnet_id))
  worker_subnet_id   = local.creates_network ? azurerm_subnet.worker[0].id : var.worker_subnet_id
  endpoint_subnet_id = local.creates_network ? azurerm_subnet.endpoint[0].id : var.redis_subnet_id

  private_zone_names = merge(
    {
      redis = "privatelink.redis.azure.net"
      blob  = "privatelink.blob.core.windows.net"
    },
    local.creates_key_vault ? { vault = "privatelink.vaultcore.azure.net" } : {},
  )
  private_zone_ids = {
    for use in keys(local.private_zone_names) : use => try(azurerm_private_dns_zone.this[use].id, var.private_dns_zone_ids[use])
  }

  endpoints = merge(
    {
      redis = { resource_id = azurerm_managed_redis.this.id, part = "redisEnterprise" }
      blob  = { resource_id = azurerm_storage_account.this.id, part = "blob" }
    },
    local.creates_key_vault ? { vault = { resource_id = azurerm_key_vault.this[0].id, part = "vault" } } : {},
  )
}

resource "azurerm_virtual_network" "this" {
  count = local.creates_network ? 1 : 0

  name                = local.name
  location            = var.location
  resource_group_name = var.resource_group_name
  address_space       = [var.vnet_cidr]
  tags                = var.tags
}

resource "azurerm_subnet" "worker" {
  count = local.creates_network ? 1 : 0

  name                 = "apps"
  resource_group_name  = var.resource_group_name
  virtual_network_name = azurerm_virtual_network.this[0].name
  address_prefixes     = [cidrsubnet(var.vnet_cidr, 23 - local.prefix_length, 0)]

  delegation {
    name = "container-apps"

    service_delegation {
      name    = "Microsoft.App/environments"
      actions = ["Microsoft.Network/virtualNetworks/subnets/join/action"]
    }
  }
}

resource "azurerm_subnet" "endpoint" {
  count = local.creates_network ? 1 : 0

  name                            = "private-endpoints"
  resource_group_name             = var.resource_group_name
  virtual_network_name            = azurerm_virtual_network.this[0].name
  address_prefixes                = [cidrsubnet(var.vnet_cidr, 24 - local.prefix_length, 2)]
  default_outbound_access_enabled = false
}

resource "azurerm_private_dns_zone" "this" {
  for_each = { for use, name in local.private_zone_names : use => name if !contains(keys(var.private_dns_zone_ids), use) }

  name                = each.value
  resource_group_name = var.resource_group_name
  tags                = var.tags
}

resource "azurerm_private_dns_zone_virtual_network_link" "this" {
  for_each = azurerm_private_dns_zone.this

  name                = local.name
  private_dns_zone_id = each.value.id
  virtual_network_id  = local.virtual_network_id
  tags                = var.tags
}

resource "azurerm_private_endpoint" "this" {
  for_each = local.endpoints

  name                = "${local.name}-${each.key}"
  location            = var.location
  resource_group_name = var.resource_group_name
  subnet_id           = local.endpoint_subnet_id
  tags                = var.tags

  private_service_connection {
    name                           = each.key
    private_connection_resource_id = each.value.resource_id
    subresource_names              = [each.value.part]
    is_manual_connection           = false
  }

  private_dns_zone_group {
    name                 = each.key
    private_dns_zone_ids = [local.private_zone_ids[each.key]]
  }
}
