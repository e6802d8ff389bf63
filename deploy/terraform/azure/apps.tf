# Container Apps: the servers, which are reached from outside, and the workers, which are reached by nobody.

locals {
  namespace = lookup(var.environment_variables, "SCRIPT_RUNNER_NAMESPACE", "script-runner")

  # what both are told; yours win
  environment = {
    for role in local.roles : role => {
      for name, value in merge(
        {
          SCRIPT_RUNNER_NAMESPACE     = local.namespace
          SCRIPT_RUNNER_REDIS_URL     = "rediss://${azurerm_managed_redis.this.hostname}:${azurerm_managed_redis.this.default_database[0].port}/0"
          SCRIPT_RUNNER_STORE         = "az://${azurerm_storage_container.artifacts.name}/${local.name}?account=${azurerm_storage_account.this.name}"
          SCRIPT_RUNNER_LEASE_SECONDS = "30" # a failover of Redis takes longer than the default of 10 bridges
          SCRIPT_RUNNER_LOG_FORMAT    = "json"
          SCRIPT_RUNNER_METRICS       = "0.0.0.0:${local.metrics_port}"
          AZURE_CLIENT_ID             = azurerm_user_assigned_identity.app[role].client_id
        },
        local.own_environment[role],
        var.environment_variables,
      ) : name => value if !contains(keys(local.secrets[role]), name)
    }
  }

  own_environment = {
    server = merge(
      {
        SCRIPT_RUNNER_HOST           = "0.0.0.0"
        SCRIPT_RUNNER_PORT           = tostring(local.port)
        SCRIPT_RUNNER_REPORT_SECONDS = "60"
        AUTH_PROVIDER                = var.auth_provider
      },
      { for name, value in {
        AUTH0_DOMAIN       = var.auth0_domain
        AUTH0_API_AUDIENCE = var.auth0_audience
        AUTH0_CLIENT_ID    = var.auth0_client_id
      } : name => value if value != null },
    )
    worker = {
      SCRIPT_RUNNER_CONCURRENCY   = tostring(var.worker_concurrency)
      SCRIPT_RUNNER_DRAIN_TIMEOUT = tostring(var.worker_drain_timeout_seconds)
    }
  }

  port         = 8000
  metrics_port = 9090

  # a name of a secret in Container Apps is lower case, digits and hyphens
  password_name     = "redis-password"
  secret_names      = { for role in local.roles : role => { for name in keys(local.secrets[role]) : name => "env-${lower(replace(name, "_", "-"))}" } }
  registry_server   = var.container_registry_id == null ? null : "${element(split("/", var.container_registry_id), 8)}.azurecr.io"
  image             = "${var.image}:${var.image_tag}"
  workload_profile  = var.worker_workload_profile == null ? "Consumption" : "workers"
  redis_key_prefix  = "{${local.namespace}}:1:"
  worker_scale_keys = { waiting = "wake", running = "running" }
}

resource "azurerm_container_app_environment" "this" {
  name                       = local.name
  location                   = var.location
  resource_group_name        = var.resource_group_name
  infrastructure_subnet_id   = local.worker_subnet_id
  zone_redundancy_enabled    = var.zone_redundancy_enabled
  public_network_access      = "Enabled" # Front Door Standard comes from outside; only the server has an ingress
  logs_destination           = "log-analytics"
  log_analytics_workspace_id = azurerm_log_analytics_workspace.this.id
  tags                       = var.tags

  workload_profile {
    name                  = "Consumption"
    workload_profile_type = "Consumption"
  }

  dynamic "workload_profile" {
    for_each = var.worker_workload_profile == null ? [] : [var.worker_workload_profile]

    content {
      name                  = "workers"
      workload_profile_type = workload_profile.value.type
      minimum_count         = workload_profile.value.minimum_count
      maximum_count         = workload_profile.value.maximum_count
    }
  }
}

resource "azurerm_container_app" "server" {
  name                         = "${local.name}-server"
  resource_group_name          = var.resource_group_name
  container_app_environment_id = azurerm_container_app_environment.this.id
  revision_mode                = "Single"
  workload_profile_name        = "Consumption"
  tags                         = var.tags

  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.app["server"].id]
  }

  dynamic "registry" {
    for_each = local.registry_server == null ? [] : [local.registry_server]

    content {
      server   = registry.value
      identity = azurerm_user_assigned_identity.app["server"].id
    }
  }

  secret {
    name                = local.password_name
    key_vault_secret_id = azurerm_key_vault_secret.redis_password.versionless_id
    identity            = azurerm_user_assigned_identity.app["server"].id
  }

  dynamic "secret" {
    for_each = local.secrets["server"]

    content {
      name                = local.secret_names["server"][secret.key]
      key_vault_secret_id = "${local.key_vault_uri}secrets/${secret.value}"
      identity            = azurerm_user_assigned_identity.app["server"].id
    }
  }

  ingress {
    external_enabled           = true
    allow_insecure_connections = false
    target_port                = local.port
    transport                  = "http"

    traffic_weight {
      latest_revision = true
      percentage      = 100
    }
  }

  template {
    min_replicas = var.server_min_replicas
    max_replicas = var.server_max_replicas
    # it lingers for 5 seconds while /ready says 503, then ends its requests
    termination_grace_period_seconds = 60

    container {
      name   = "server"
      image  = local.image
      args   = ["script-runner", "serve"]
      cpu    = var.server_cpu
      memory = var.server_memory

      dynamic "env" {
        for_each = local.environment["server"]

        content {
          name  = env.key
          value = env.value
        }
      }

      env {
        name        = "SCRIPT_RUNNER_REDIS_PASSWORD"
        secret_name = local.password_name
      }

      dynamic "env" {
        for_each = local.secret_names["server"]

        content {
          name        = env.key
          secret_name = env.value
        }
      }

      startup_probe {
        transport               = "HTTP"
        port                    = local.metrics_port
        path                    = "/health"
        interval_seconds        = 2
        failure_count_threshold = 30
      }

      liveness_probe {
        transport               = "HTTP"
        port                    = local.metrics_port
        path                    = "/health"
        interval_seconds        = 10
        timeout                 = 5
        failure_count_threshold = 6
      }

      readiness_probe {
        transport               = "HTTP"
        port                    = local.metrics_port
        path                    = "/ready"
        interval_seconds        = 2
        timeout                 = 5
        failure_count_threshold = 2
        success_count_threshold = 1
      }
    }

    http_scale_rule {
      name                = "requests"
      concurrent_requests = "100"
    }
  }

  depends_on = [
    azurerm_private_endpoint.this,
    azurerm_role_assignment.artifacts,
    azurerm_role_assignment.redis_password,
    azurerm_role_assignment.registry,
    azurerm_role_assignment.secret,
  ]
}

resource "azurerm_container_app" "worker" {
  name                         = "${local.name}-worker"
  resource_group_name          = var.resource_group_name
  container_app_environment_id = azurerm_container_app_environment.this.id
  revision_mode                = "Single"
  workload_profile_name        = local.workload_profile
  tags                         = var.tags

  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.app["worker"].id]
  }

  dynamic "registry" {
    for_each = local.registry_server == null ? [] : [local.registry_server]

    content {
      server   = registry.value
      identity = azurerm_user_assigned_identity.app["worker"].id
    }
  }

  secret {
    name                = local.password_name
    key_vault_secret_id = azurerm_key_vault_secret.redis_password.versionless_id
    identity            = azurerm_user_assigned_identity.app["worker"].id
  }

  dynamic "secret" {
    for_each = local.secrets["worker"]

    content {
      name                = local.secret_names["worker"][secret.key]
      key_vault_secret_id = "${local.key_vault_uri}secrets/${secret.value}"
      identity            = azurerm_user_assigned_identity.app["worker"].id
    }
  }

  template {
    min_replicas                     = var.worker_min_replicas
    max_replicas                     = var.worker_max_replicas
    cooldown_period_in_seconds       = var.worker_cooldown_seconds
    polling_interval_in_seconds      = 10
    termination_grace_period_seconds = var.worker_drain_timeout_seconds + var.script_grace_seconds + 10

    container {
      name   = "worker"
      image  = local.image
      args   = ["script-runner", "worker"]
      cpu    = var.worker_cpu
      memory = var.worker_memory

      dynamic "env" {
        for_each = local.environment["worker"]

        content {
          name  = env.key
          value = env.value
        }
      }

      env {
        name        = "SCRIPT_RUNNER_REDIS_PASSWORD"
        secret_name = local.password_name
      }

      dynamic "env" {
        for_each = local.secret_names["worker"]

        content {
          name        = env.key
          secret_name = env.value
        }
      }

      startup_probe {
        transport               = "HTTP"
        port                    = local.metrics_port
        path                    = "/health"
        interval_seconds        = 2
        failure_count_threshold = 30
      }

      # long, and no readiness probe: a busy machine is no reason to kill a script
      liveness_probe {
        transport               = "HTTP"
        port                    = local.metrics_port
        path                    = "/health"
        interval_seconds        = 30
        timeout                 = 10
        failure_count_threshold = 10
      }
    }

    # KEDA takes the larger of the two: as many workers as what waits needs, and never fewer than what runs keeps
    # busy. Its "redis" scaler counts whatever the key is, a list (wake) or a sorted set (running).
    dynamic "custom_scale_rule" {
      for_each = local.worker_scale_keys

      content {
        name             = custom_scale_rule.key
        custom_rule_type = "redis"

        metadata = {
          address              = "${azurerm_managed_redis.this.hostname}:${azurerm_managed_redis.this.default_database[0].port}"
          listName             = "${local.redis_key_prefix}${custom_scale_rule.value}"
          listLength           = tostring(var.worker_concurrency)
          activationListLength = "0"
          databaseIndex        = "0"
          enableTLS            = "true"
        }

        authentication {
          secret_name       = local.password_name
          trigger_parameter = "password"
        }
      }
    }
  }

  depends_on = [
    azurerm_private_endpoint.this,
    azurerm_role_assignment.artifacts,
    azurerm_role_assignment.redis_password,
    azurerm_role_assignment.registry,
    azurerm_role_assignment.secret,
  ]
}
