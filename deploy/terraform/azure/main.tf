# Names, and who is who: an identity for the servers and one for the workers, each with the rights it needs.

data "azurerm_client_config" "current" {}

locals {
  words = trim(replace(lower(var.stack_name), "/[^a-z0-9]+/", "-"), "-")
  name  = trimsuffix(substr(can(regex("^[a-z]", local.words)) ? local.words : "s-${local.words}", 0, 20), "-")

  # storage accounts, Key Vaults, Redis and Front Door share one name space with all of Azure
  suffix = substr(sha256("${data.azurerm_client_config.current.subscription_id}/${var.resource_group_name}/${local.name}"), 0, 8)

  roles = toset(["server", "worker"])
}

resource "azurerm_user_assigned_identity" "app" {
  for_each = local.roles

  name                = "${local.name}-${each.key}"
  location            = var.location
  resource_group_name = var.resource_group_name
  tags                = var.tags
}

resource "azurerm_role_assignment" "artifacts" {
  for_each = local.roles

  scope                = azurerm_storage_container.artifacts.id
  role_definition_name = "Storage Blob Data Contributor"
  principal_id         = azurerm_user_assigned_identity.app[each.key].principal_id
  principal_type       = "ServicePrincipal"
}

resource "azurerm_role_assignment" "redis_password" {
  for_each = local.roles

  scope                = azurerm_key_vault_secret.redis_password.resource_versionless_id
  role_definition_name = "Key Vault Secrets User"
  principal_id         = azurerm_user_assigned_identity.app[each.key].principal_id
  principal_type       = "ServicePrincipal"
}

resource "azurerm_role_assignment" "secret" {
  for_each = {
    for pair in concat(
      [for name in toset(values(local.secrets["server"])) : { role = "server", name = name }],
      [for name in toset(values(local.secrets["worker"])) : { role = "worker", name = name }],
    ) : "${pair.role}/${pair.name}" => pair
  }

  scope                = "${local.key_vault_id}/secrets/${each.value.name}"
  role_definition_name = "Key Vault Secrets User"
  principal_id         = azurerm_user_assigned_identity.app[each.value.role].principal_id
  principal_type       = "ServicePrincipal"
}

resource "azurerm_role_assignment" "registry" {
  for_each = var.container_registry_id == null ? toset([]) : local.roles

  scope                = var.container_registry_id
  role_definition_name = "AcrPull"
  principal_id         = azurerm_user_assigned_identity.app[each.key].principal_id
  principal_type       = "ServicePrincipal"
}
