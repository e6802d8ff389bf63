# Azure Managed Redis: the queue and the records. Its older sister, Azure Cache for Redis, takes no new instances.

resource "azurerm_managed_redis" "this" {
  name                      = "${local.name}-${local.suffix}"
  location                  = var.location
  resource_group_name       = var.resource_group_name
  sku_name                  = var.redis_sku_name
  high_availability_enabled = var.redis_high_availability_enabled
  public_network_access     = "Disabled"
  tags                      = var.tags

  default_database {
    # TLS only; the service speaks 1.2 and 1.3
    client_protocol = "Encrypted"
    # one endpoint for one shard: our keys are in one slot, and KEDA's scaler follows no redirection
    clustering_policy = "NoCluster"
    # a full Redis says so, and forgets nothing
    eviction_policy = "NoEviction"
    # all that may be lost with the machine is the last second
    persistence_append_only_file_backup_frequency = "1s"
    access_keys_authentication_enabled            = true
  }
}
