# Key Vault: the password of Redis and your own secrets. Apps get references, never values.

locals {
  creates_key_vault = var.key_vault_id == null
  key_vault_id      = local.creates_key_vault ? azurerm_key_vault.this[0].id : var.key_vault_id
  key_vault_uri     = local.creates_key_vault ? azurerm_key_vault.this[0].vault_uri : data.azurerm_key_vault.given[0].vault_uri

  # environment variable -> name of the secret that holds its value
  secrets = {
    server = var.secrets
    worker = merge(var.secrets, var.worker_secrets)
  }
}

data "azurerm_key_vault" "given" {
  count = local.creates_key_vault ? 0 : 1

  name                = element(split("/", var.key_vault_id), 8)
  resource_group_name = element(split("/", var.key_vault_id), 4)
}

resource "azurerm_key_vault" "this" {
  count = local.creates_key_vault ? 1 : 0

  name                          = "${trimsuffix(substr(local.name, 0, 15), "-")}-${local.suffix}"
  location                      = var.location
  resource_group_name           = var.resource_group_name
  tenant_id                     = data.azurerm_client_config.current.tenant_id
  sku_name                      = "standard"
  rbac_authorization_enabled    = true
  purge_protection_enabled      = true
  soft_delete_retention_days    = 7
  public_network_access_enabled = length(var.key_vault_allowed_ip_ranges) > 0
  tags                          = var.tags

  network_acls {
    default_action = "Deny"
    bypass         = "None"
    ip_rules       = var.key_vault_allowed_ip_ranges
  }
}

resource "azurerm_role_assignment" "terraform" {
  count = local.creates_key_vault ? 1 : 0

  scope                = azurerm_key_vault.this[0].id
  role_definition_name = "Key Vault Secrets Officer"
  principal_id         = data.azurerm_client_config.current.object_id
}

resource "azurerm_key_vault_secret" "redis_password" {
  name         = "${local.name}-redis-password"
  key_vault_id = local.key_vault_id
  value        = azurerm_managed_redis.this.default_database[0].primary_access_key
  content_type = "access key of ${azurerm_managed_redis.this.name}"
  tags         = var.tags

  # where Terraform runs inside the network, it comes by the private endpoint
  depends_on = [azurerm_role_assignment.terraform, azurerm_private_endpoint.this]
}
