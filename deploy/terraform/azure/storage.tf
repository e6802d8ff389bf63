# The artifact store: rows and files, reached by private endpoint and managed identity alone.

resource "azurerm_storage_account" "this" {
  name                             = "${substr(replace(local.name, "-", ""), 0, 14)}${local.suffix}"
  location                         = var.location
  resource_group_name              = var.resource_group_name
  account_kind                     = "StorageV2"
  account_tier                     = "Standard"
  account_replication_type         = var.zone_redundancy_enabled ? "ZRS" : "LRS"
  public_network_access            = "Disabled"
  allow_nested_items_to_be_public  = false
  shared_access_key_enabled        = false
  default_to_oauth_authentication  = true
  local_user_enabled               = false
  cross_tenant_replication_enabled = false
  https_traffic_only_enabled       = true
  min_tls_version                  = "TLS1_2"
  tags                             = var.tags

  network_rules {
    default_action = "Deny"
    bypass         = ["None"]
  }

  blob_properties {
    # kept by mistake or removed by mistake: a day to notice
    delete_retention_policy {
      days = 1
    }
  }
}

resource "azurerm_storage_container" "artifacts" {
  name                  = "artifacts"
  storage_account_id    = azurerm_storage_account.this.id
  container_access_type = "private"
}

resource "azurerm_storage_management_policy" "this" {
  storage_account_id = azurerm_storage_account.this.id

  rule {
    name    = "expire-artifacts"
    enabled = true

    filters {
      blob_types   = ["blockBlob"]
      prefix_match = ["${azurerm_storage_container.artifacts.name}/"]
    }

    actions {
      base_blob {
        delete_after_days_since_creation_greater_than = var.artifacts_expiry_days
      }
    }
  }
}
