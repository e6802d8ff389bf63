# What the module promises, against a mocked provider: terraform test makes nothing and needs no account.

mock_provider "azurerm" {
  mock_resource "azurerm_storage_container" {
    defaults = {
      id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a/blobServices/default/containers/artifacts"
    }
  }

  mock_resource "azurerm_key_vault_secret" {
    defaults = {
      versionless_id          = "https://vault.example/secrets/redis"
      resource_versionless_id = "/vault/secrets/redis"
    }
  }

  mock_resource "azurerm_key_vault" {
    defaults = {
      id        = "/vault"
      vault_uri = "https://vault.example/"
    }
  }

  mock_data "azurerm_key_vault" {
    defaults = {
      vault_uri = "https://given.example/"
    }
  }

  mock_resource "azurerm_managed_redis" {
    defaults = {
      id       = "/redis"
      hostname = "redis.example"
    }
  }
}

variables {
  location            = "westeurope"
  resource_group_name = "scripts"
  image               = "example.azurecr.io/plates"
  image_tag           = "1"
  auth_provider       = "none"
}

run "nothing_is_public_but_the_server" {
  assert {
    condition     = azurerm_managed_redis.this.public_network_access == "Disabled"
    error_message = "Redis can be reached from outside."
  }

  assert {
    condition     = azurerm_storage_account.this.public_network_access == "Disabled" && azurerm_storage_account.this.network_rules[0].default_action == "Deny"
    error_message = "The storage account can be reached from outside."
  }

  assert {
    condition     = !azurerm_storage_account.this.allow_nested_items_to_be_public && azurerm_storage_container.artifacts.container_access_type == "private"
    error_message = "Files may be made public."
  }

  assert {
    condition     = !azurerm_key_vault.this[0].public_network_access_enabled && azurerm_key_vault.this[0].network_acls[0].default_action == "Deny"
    error_message = "The Key Vault can be reached from outside."
  }

  assert {
    condition     = length(azurerm_container_app.worker.ingress) == 0
    error_message = "Workers can be reached."
  }

  assert {
    condition     = toset(keys(azurerm_private_endpoint.this)) == toset(["redis", "blob", "vault"])
    error_message = "Redis, storage and Key Vault each have a private endpoint."
  }

  assert {
    condition = alltrue([
      for use, zone in azurerm_private_dns_zone.this : contains(azurerm_private_endpoint.this[use].private_dns_zone_group[0].private_dns_zone_ids, zone.id)
    ])
    error_message = "An endpoint's name is not resolved inside the network."
  }
}

run "all_lines_are_encrypted" {
  assert {
    condition     = azurerm_managed_redis.this.default_database[0].client_protocol == "Encrypted"
    error_message = "Redis speaks plain text."
  }

  assert {
    condition     = { for env in azurerm_container_app.server.template[0].container[0].env : env.name => env.value }["SCRIPT_RUNNER_REDIS_URL"] == "rediss://redis.example:${azurerm_managed_redis.this.default_database[0].port}/0"
    error_message = "The servers do not use TLS towards Redis."
  }

  assert {
    condition     = azurerm_storage_account.this.min_tls_version == "TLS1_2" && azurerm_storage_account.this.https_traffic_only_enabled
    error_message = "The storage account takes old TLS or none."
  }

  assert {
    condition     = !azurerm_container_app.server.ingress[0].allow_insecure_connections
    error_message = "The servers take plain HTTP."
  }

  assert {
    condition     = azurerm_cdn_frontdoor_route.this.https_redirect_enabled && azurerm_cdn_frontdoor_route.this.forwarding_protocol == "HttpsOnly"
    error_message = "Front Door does not insist on HTTPS."
  }

  assert {
    condition     = alltrue([for rule in azurerm_container_app.worker.template[0].custom_scale_rule : rule.metadata["enableTLS"] == "true"])
    error_message = "The scaler does not use TLS."
  }
}

run "redis_forgets_nothing" {
  assert {
    condition     = azurerm_managed_redis.this.default_database[0].eviction_policy == "NoEviction"
    error_message = "Redis evicts."
  }

  assert {
    condition     = azurerm_managed_redis.this.default_database[0].persistence_append_only_file_backup_frequency == "1s"
    error_message = "Redis does not persist."
  }
}

run "no_secret_but_by_reference" {
  variables {
    secrets        = { BOTH = "both" }
    worker_secrets = { DATABASE_PASSWORD = "database" }
  }

  assert {
    condition = alltrue([
      for secret in concat(tolist(azurerm_container_app.server.secret), tolist(azurerm_container_app.worker.secret)) :
      secret.value == null && startswith(secret.key_vault_secret_id, "https://vault.example/secrets/") && secret.identity != null
    ])
    error_message = "An app holds a value instead of a reference."
  }

  assert {
    condition = { for env in azurerm_container_app.worker.template[0].container[0].env : env.name => env.secret_name if env.secret_name != null && env.secret_name != "" } == {
      SCRIPT_RUNNER_REDIS_PASSWORD = "redis-password"
      BOTH                         = "env-both"
      DATABASE_PASSWORD            = "env-database-password"
    }
    error_message = "The workers do not get their secrets."
  }

  assert {
    condition     = !contains([for env in azurerm_container_app.server.template[0].container[0].env : env.name], "DATABASE_PASSWORD")
    error_message = "The servers get a secret of the workers."
  }

  assert {
    condition     = !azurerm_storage_account.this.shared_access_key_enabled
    error_message = "The storage account takes keys."
  }
}

run "each_identity_has_only_what_it_needs" {
  variables {
    secrets               = { BOTH = "both" }
    worker_secrets        = { DATABASE_PASSWORD = "database" }
    container_registry_id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerRegistry/registries/example"
  }

  assert {
    condition     = alltrue([for assignment in azurerm_role_assignment.artifacts : endswith(assignment.scope, "/containers/artifacts") && assignment.role_definition_name == "Storage Blob Data Contributor"])
    error_message = "Rights on more than the one container."
  }

  assert {
    condition     = { for key, assignment in azurerm_role_assignment.secret : key => assignment.scope } == { "server/both" = "/vault/secrets/both", "worker/both" = "/vault/secrets/both", "worker/database" = "/vault/secrets/database" }
    error_message = "Rights on other secrets than its own."
  }

  assert {
    condition     = alltrue([for assignment in azurerm_role_assignment.redis_password : assignment.scope == "/vault/secrets/redis" && assignment.role_definition_name == "Key Vault Secrets User"])
    error_message = "Rights on more than the password of Redis."
  }

  assert {
    condition     = toset([for assignment in azurerm_role_assignment.artifacts : assignment.principal_id]) == toset([for identity in azurerm_user_assigned_identity.app : identity.principal_id])
    error_message = "Servers and workers do not have an identity each."
  }

  assert {
    condition     = azurerm_container_app.server.registry[0].server == "example.azurecr.io" && azurerm_container_app.server.registry[0].identity == azurerm_user_assigned_identity.app["server"].id
    error_message = "The image is not pulled by the app's identity."
  }
}

run "workers_scale_from_zero_and_are_given_time" {
  variables {
    worker_concurrency    = 4
    environment_variables = { SCRIPT_RUNNER_NAMESPACE = "plates", LANG = "C.UTF-8" }
  }

  assert {
    condition     = azurerm_container_app.worker.template[0].min_replicas == 0
    error_message = "Workers cost money while nothing waits."
  }

  assert {
    condition     = { for rule in azurerm_container_app.worker.template[0].custom_scale_rule : rule.name => rule.metadata["listName"] } == { waiting = "{plates}:1:wake", running = "{plates}:1:running" }
    error_message = "The scaler looks at other keys than the queue has."
  }

  assert {
    condition     = alltrue([for rule in azurerm_container_app.worker.template[0].custom_scale_rule : rule.custom_rule_type == "redis" && rule.metadata["listLength"] == "4" && rule.authentication[0].secret_name == "redis-password" && rule.authentication[0].trigger_parameter == "password"])
    error_message = "The scaler does not know how much a worker runs at once, or the password."
  }

  assert {
    condition     = azurerm_container_app.worker.template[0].termination_grace_period_seconds > var.worker_drain_timeout_seconds + var.script_grace_seconds
    error_message = "A worker is killed before it has drained."
  }

  assert {
    condition     = { for env in azurerm_container_app.worker.template[0].container[0].env : env.name => env.value }["LANG"] == "C.UTF-8"
    error_message = "The variables of the caller do not arrive."
  }
}

run "large_workers" {
  variables {
    worker_cpu              = 8
    worker_memory           = "32Gi"
    worker_workload_profile = { type = "D16" }
  }

  assert {
    condition     = { for profile in azurerm_container_app_environment.this.workload_profile : profile.name => profile.workload_profile_type } == { Consumption = "Consumption", workers = "D16" }
    error_message = "There is no profile for large workers."
  }

  assert {
    condition     = azurerm_container_app.worker.workload_profile_name == "workers" && azurerm_container_app.server.workload_profile_name == "Consumption"
    error_message = "The workers are not in their profile, or the servers are."
  }
}

run "a_name_of_ones_own" {
  variables {
    dns_subdomain                = "scripts"
    dns_zone_name                = "example.org"
    dns_zone_resource_group_name = "dns"
  }

  assert {
    condition     = output.url == "https://scripts.example.org"
    error_message = "The address is another."
  }

  assert {
    condition     = azurerm_dns_txt_record.validation[0].name == "_dnsauth.scripts" && azurerm_dns_txt_record.validation[0].resource_group_name == "dns"
    error_message = "The name is not proven."
  }

  assert {
    condition     = azurerm_dns_cname_record.this[0].record == azurerm_cdn_frontdoor_endpoint.this.host_name
    error_message = "The name leads elsewhere."
  }

  assert {
    condition     = azurerm_cdn_frontdoor_custom_domain.this[0].tls[0].certificate_type == "ManagedCertificate" && azurerm_cdn_frontdoor_custom_domain.this[0].tls[0].minimum_version == "TLS12"
    error_message = "The certificate is not managed, or old TLS is taken."
  }

  assert {
    condition     = !azurerm_cdn_frontdoor_route.this.link_to_default_domain
    error_message = "It is reached under two names."
  }
}

run "the_variables_of_the_original_module" {
  variables {
    location                     = "westeurope"
    resource_group_name          = "scripts"
    stack_name                   = "Plate_QC production, second attempt"
    image                        = "example/plates"
    image_tag                    = "1"
    auth_provider                = "auth0"
    auth0_domain                 = "example.eu.auth0.com"
    auth0_audience               = "https://scripts.example.org"
    auth0_client_id              = "client"
    dns_subdomain                = "scripts"
    dns_zone_name                = "example.org"
    dns_zone_resource_group_name = "dns"
    redis_subnet_id              = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/old/subnets/redis"
    worker_subnet_id             = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/old/subnets/worker"
    tags                         = { team = "plates" }
  }

  assert {
    condition     = azurerm_container_app.server.name == "plate-qc-production-server"
    error_message = "An old stack name is not taken."
  }

  assert {
    condition     = length(azurerm_virtual_network.this) == 0 && azurerm_container_app_environment.this.infrastructure_subnet_id == var.worker_subnet_id
    error_message = "The given subnet is not used."
  }

  assert {
    condition     = alltrue([for endpoint in azurerm_private_endpoint.this : endpoint.subnet_id == var.redis_subnet_id]) && output.virtual_network_id == "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/old"
    error_message = "The private endpoints are elsewhere."
  }

  assert {
    condition = { for env in azurerm_container_app.server.template[0].container[0].env : env.name => env.value if startswith(env.name, "AUTH") } == {
      AUTH_PROVIDER      = "auth0"
      AUTH0_DOMAIN       = "example.eu.auth0.com"
      AUTH0_API_AUDIENCE = "https://scripts.example.org"
      AUTH0_CLIENT_ID    = "client"
    }
    error_message = "Auth0 is not configured."
  }

  assert {
    condition = alltrue([
      for it in concat(
        [azurerm_container_app.server, azurerm_container_app.worker, azurerm_container_app_environment.this, azurerm_managed_redis.this, azurerm_storage_account.this],
        azurerm_key_vault.this, [azurerm_log_analytics_workspace.this, azurerm_cdn_frontdoor_profile.this], values(azurerm_user_assigned_identity.app), values(azurerm_private_endpoint.this),
      ) : try(it.tags["team"], null) == "plates"
    ])
    error_message = "Something carries no tags."
  }
}

run "a_key_vault_that_is_there" {
  variables {
    key_vault_id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/mine"
    secrets      = { TOKEN = "token" }
  }

  assert {
    condition     = length(azurerm_key_vault.this) == 0 && azurerm_key_vault_secret.redis_password.key_vault_id == var.key_vault_id && data.azurerm_key_vault.given[0].name == "mine"
    error_message = "The given vault is not used."
  }

  assert {
    condition     = contains([for secret in azurerm_container_app.server.secret : secret.key_vault_secret_id], "https://given.example/secrets/token")
    error_message = "The secret is looked for elsewhere."
  }

  assert {
    condition     = azurerm_role_assignment.secret["server/token"].scope == "${var.key_vault_id}/secrets/token"
    error_message = "The right is on something else."
  }
}

run "short_names_and_small_networks" {
  variables {
    stack_name = "7b"
    vnet_cidr  = "10.9.0.0/22"
  }

  assert {
    condition     = azurerm_container_app.worker.name == "s-7b-worker" && can(regex("^[a-z][a-z0-9-]{2,23}$", azurerm_key_vault.this[0].name)) && can(regex("^[a-z0-9]{3,24}$", azurerm_storage_account.this.name))
    error_message = "A name is none that Azure takes."
  }

  assert {
    condition     = one(azurerm_subnet.worker[0].address_prefixes) == "10.9.0.0/23" && one(azurerm_subnet.endpoint[0].address_prefixes) == "10.9.2.0/24"
    error_message = "The subnets overlap, or lie outside the network."
  }
}

run "somebody_hears_of_trouble" {
  variables {
    alert_emails           = ["ops@example.org"]
    alert_action_group_ids = ["/groups/pager"]
  }

  assert {
    condition     = toset(keys(azurerm_monitor_scheduled_query_rules_alert_v2.this)) == toset(["oldest-queued", "no-workers", "failed-tasks", "no-server"])
    error_message = "An alert is missing."
  }

  assert {
    condition     = length(azurerm_monitor_metric_alert.redis_memory.action) == 2 && alltrue([for alert in azurerm_monitor_scheduled_query_rules_alert_v2.this : length(alert.action[0].action_groups) == 2])
    error_message = "An alert tells nobody."
  }
}

run "auth0_needs_its_domain_and_audience" {
  command = plan

  variables {
    auth_provider = "auth0"
  }

  expect_failures = [var.auth0_domain, var.auth0_audience]
}

run "half_a_name_is_refused" {
  command = plan

  variables {
    dns_subdomain = "scripts"
  }

  expect_failures = [var.dns_subdomain]
}

run "one_subnet_alone_is_refused" {
  command = plan

  variables {
    worker_subnet_id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/old/subnets/worker"
  }

  expect_failures = [var.worker_subnet_id]
}

run "a_drain_longer_than_azure_waits_is_refused" {
  command = plan

  variables {
    worker_drain_timeout_seconds = 600
  }

  expect_failures = [var.worker_drain_timeout_seconds]
}
