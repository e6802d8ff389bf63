# Log Analytics and the alerts. All alerts read the JSON lines that servers and workers write.

locals {
  lines = "ContainerAppConsoleLogs_CL | where ContainerAppName_s in (\"${local.name}-server\", \"${local.name}-worker\") | extend line = parse_json(Log_s)"
  queue = "${local.lines} | where tostring(line.event) == \"queue\""

  action_group_ids = concat(azurerm_monitor_action_group.this[*].id, var.alert_action_group_ids)

  alerts = {
    oldest-queued = {
      description = "A task has waited for more than ${var.alert_oldest_queued_seconds} seconds."
      severity    = 2
      query       = "${local.queue} | project TimeGenerated, oldest_seconds = todouble(line.oldest_seconds)"
      column      = "oldest_seconds"
      aggregation = "Maximum"
      operator    = "GreaterThan"
      threshold   = var.alert_oldest_queued_seconds
    }
    no-workers = {
      description = "Tasks have waited for more than five minutes, and no worker is alive."
      severity    = 1
      query       = "${local.queue} | where toint(line.workers) == 0 and toint(line.queued) > 0 and todouble(line.oldest_seconds) > 300"
      column      = null
      aggregation = "Count"
      operator    = "GreaterThan"
      threshold   = 0
    }
    failed-tasks = {
      description = "More than ${var.alert_failed_tasks} tasks failed, timed out or were lost."
      severity    = 2
      query       = "${local.lines} | where tostring(line.event) == \"finished\" and tostring(line.state) in (\"failed\", \"timed_out\", \"lost\")"
      column      = null
      aggregation = "Count"
      operator    = "GreaterThan"
      threshold   = var.alert_failed_tasks
    }
    no-server = {
      description = "No server has reported the queue: none runs, or Redis is away."
      severity    = 1
      query       = local.queue
      column      = null
      aggregation = "Count"
      operator    = "LessThan"
      threshold   = 1
    }
  }
}

resource "azurerm_log_analytics_workspace" "this" {
  name                = "${local.name}-logs"
  location            = var.location
  resource_group_name = var.resource_group_name
  sku                 = "PerGB2018"
  retention_in_days   = var.log_retention_days
  tags                = var.tags
}

resource "azurerm_monitor_diagnostic_setting" "key_vault" {
  count = local.creates_key_vault ? 1 : 0

  name                       = "audit"
  target_resource_id         = azurerm_key_vault.this[0].id
  log_analytics_workspace_id = azurerm_log_analytics_workspace.this.id

  enabled_log {
    category_group = "audit"
  }
}

resource "azurerm_monitor_action_group" "this" {
  count = length(var.alert_emails) > 0 ? 1 : 0

  name                = local.name
  resource_group_name = var.resource_group_name
  short_name          = substr(replace(local.name, "-", ""), 0, 12)
  tags                = var.tags

  dynamic "email_receiver" {
    for_each = var.alert_emails

    content {
      name                    = email_receiver.value
      email_address           = email_receiver.value
      use_common_alert_schema = true
    }
  }
}

# with NoEviction a full Redis takes no new tasks
resource "azurerm_monitor_metric_alert" "redis_memory" {
  name                = "${local.name}-redis-memory"
  description         = "Redis is more than 80 % full; when it is full, no task is taken any more."
  resource_group_name = var.resource_group_name
  scopes              = [azurerm_managed_redis.this.id]
  severity            = 2
  frequency           = "PT5M"
  window_size         = "PT15M"
  tags                = var.tags

  criteria {
    metric_namespace       = "Microsoft.Cache/redisEnterprise"
    metric_name            = "usedmemorypercentage"
    aggregation            = "Maximum"
    operator               = "GreaterThan"
    threshold              = 80
    skip_metric_validation = true
  }

  dynamic "action" {
    for_each = local.action_group_ids

    content {
      action_group_id = action.value
    }
  }
}

resource "azurerm_monitor_scheduled_query_rules_alert_v2" "this" {
  for_each = local.alerts

  name                    = "${local.name}-${each.key}"
  display_name            = "${local.name}: ${each.key}"
  description             = each.value.description
  location                = var.location
  resource_group_name     = var.resource_group_name
  scopes                  = [azurerm_log_analytics_workspace.this.id]
  severity                = each.value.severity
  evaluation_frequency    = "PT5M"
  window_duration         = "PT15M"
  auto_mitigation_enabled = true
  # the table is there from the first line that an app has written
  skip_query_validation = true
  tags                  = var.tags

  criteria {
    query                   = each.value.query
    metric_measure_column   = each.value.column
    time_aggregation_method = each.value.aggregation
    operator                = each.value.operator
    threshold               = each.value.threshold

    failing_periods {
      number_of_evaluation_periods             = 1
      minimum_failing_periods_to_trigger_alert = 1
    }
  }

  action {
    action_groups = local.action_group_ids
  }
}
