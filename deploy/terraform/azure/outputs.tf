# What the caller learns.

output "url" {
  description = "Where it is reached."
  value       = "https://${local.host_name}"
}

output "front_door_host_name" {
  description = "Front Door's own name, the target of the CNAME record."
  value       = azurerm_cdn_frontdoor_endpoint.this.host_name
}

output "server_name" {
  description = "The container app of the servers."
  value       = azurerm_container_app.server.name
}

output "worker_name" {
  description = "The container app of the workers."
  value       = azurerm_container_app.worker.name
}

output "environment_id" {
  description = "The Container Apps environment."
  value       = azurerm_container_app_environment.this.id
}

output "server_identity" {
  description = "The servers' identity: its resource, client and principal ID."
  value       = local.identity["server"]
}

output "worker_identity" {
  description = "The workers' identity, for rights that your script needs: its resource, client and principal ID."
  value       = local.identity["worker"]
}

output "redis_host_name" {
  description = "Redis; reached from inside the network only."
  value       = azurerm_managed_redis.this.hostname
}

output "storage_account_name" {
  description = "The storage account of the files."
  value       = azurerm_storage_account.this.name
}

output "storage_container_name" {
  description = "The container of the files."
  value       = azurerm_storage_container.artifacts.name
}

output "key_vault_id" {
  description = "The Key Vault that holds the password of Redis, and your secrets."
  value       = local.key_vault_id
}

output "log_analytics_workspace_id" {
  description = "Where the logs are."
  value       = azurerm_log_analytics_workspace.this.id
}

output "virtual_network_id" {
  description = "The virtual network."
  value       = local.virtual_network_id
}

locals {
  identity = {
    for role, identity in azurerm_user_assigned_identity.app : role => {
      id           = identity.id
      client_id    = identity.client_id
      principal_id = identity.principal_id
    }
  }
}
