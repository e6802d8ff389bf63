# Logs, the metrics made of them, alarms that ask somebody to act, and a page to look at.

locals {
  metric_namespace = "ScriptRunner/${local.name}"

  # fields of the event that each server logs every 30 s: {"event": "queue", "backlog": 3, …}
  queue_metrics = {
    Queued              = "queued"
    Running             = "running"
    Backlog             = "backlog"
    OldestQueuedSeconds = "oldest_seconds"
    Workers             = "workers"
  }
}

resource "aws_cloudwatch_log_group" "server" {
  name              = "/script-runner/${local.name}/server"
  retention_in_days = var.log_retention_days
  tags              = local.tags
}

resource "aws_cloudwatch_log_group" "worker" {
  name              = "/script-runner/${local.name}/worker"
  retention_in_days = var.log_retention_days
  tags              = local.tags
}

resource "aws_cloudwatch_log_metric_filter" "queue" {
  for_each = local.queue_metrics

  name           = "${local.name}-${each.value}"
  log_group_name = aws_cloudwatch_log_group.server.name
  pattern        = "{ $.event = \"queue\" }"

  # no default: a queue that is not reported is not an empty one
  metric_transformation {
    namespace = local.metric_namespace
    name      = each.key
    value     = "$.${each.value}"
  }
}

resource "aws_cloudwatch_log_metric_filter" "failed" {
  for_each = { server = aws_cloudwatch_log_group.server.name, worker = aws_cloudwatch_log_group.worker.name }

  name           = "${local.name}-failed-${each.key}"
  log_group_name = each.value
  pattern        = "{ $.event = \"finished\" && ($.state = \"failed\" || $.state = \"timed_out\" || $.state = \"lost\") }"

  metric_transformation {
    namespace     = local.metric_namespace
    name          = "Failed"
    value         = "1"
    default_value = "0"
  }
}

resource "aws_cloudwatch_metric_alarm" "oldest" {
  alarm_name          = "${local.name}-oldest-queued"
  alarm_description   = "A task of ${local.name} has waited for its start for more than ${var.oldest_queued_alarm_seconds} s: too few workers (worker_max_count), or none that starts."
  namespace           = local.metric_namespace
  metric_name         = "OldestQueuedSeconds"
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 2
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.oldest_queued_alarm_seconds
  treat_missing_data  = "notBreaching" # nothing waits, or nobody says (see silent)
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns
  tags                = local.tags

  depends_on = [aws_cloudwatch_log_metric_filter.queue]
}

resource "aws_cloudwatch_metric_alarm" "failed" {
  alarm_name          = "${local.name}-failed"
  alarm_description   = "At least ${var.failed_alarm_count} tasks of ${local.name} failed, ran out of time or were lost within five minutes."
  namespace           = local.metric_namespace
  metric_name         = "Failed"
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = var.failed_alarm_count
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns
  tags                = local.tags

  depends_on = [aws_cloudwatch_log_metric_filter.failed]
}

resource "aws_cloudwatch_metric_alarm" "no_workers" {
  alarm_name          = "${local.name}-no-workers"
  alarm_description   = "For ten minutes ${local.name} has had work and no living worker: see the events of the worker service, and its log."
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  evaluation_periods  = 10
  datapoints_to_alarm = 10
  treat_missing_data  = "ignore"
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns
  tags                = local.tags

  metric_query {
    id          = "stranded"
    label       = "backlog without a worker"
    expression  = "IF(workers < 1, backlog, 0)"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = { backlog = "Backlog", workers = "Workers" }

    content {
      id = metric_query.key

      metric {
        namespace   = local.metric_namespace
        metric_name = metric_query.value
        period      = 60
        stat        = "Maximum"
      }
    }
  }

  depends_on = [aws_cloudwatch_log_metric_filter.queue]
}

resource "aws_cloudwatch_metric_alarm" "silent" {
  alarm_name          = "${local.name}-silent"
  alarm_description   = "No server of ${local.name} has reported the queue for five minutes: no server runs, or none reaches Redis. Workers are not scaled until one does."
  namespace           = local.metric_namespace
  metric_name         = "Backlog"
  statistic           = "SampleCount"
  period              = 60
  evaluation_periods  = 5
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  treat_missing_data  = "breaching"
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns
  tags                = local.tags

  depends_on = [aws_cloudwatch_log_metric_filter.queue]
}

resource "aws_cloudwatch_metric_alarm" "errors" {
  alarm_name          = "${local.name}-errors"
  alarm_description   = "Servers of ${local.name} answered ten requests or more with 5xx within five minutes."
  namespace           = "AWS/ApplicationELB"
  metric_name         = "HTTPCode_Target_5XX_Count"
  dimensions          = { LoadBalancer = aws_lb.this.arn_suffix }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 10
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns
  tags                = local.tags
}

resource "aws_cloudwatch_metric_alarm" "redis_memory" {
  count = length(local.redis_node_ids)

  alarm_name          = "${local.name}-redis-memory-${count.index + 1}"
  alarm_description   = "Redis of ${local.name} is three quarters full. It evicts nothing: when it is full, no task is taken any more. Take a larger redis_node_type."
  namespace           = "AWS/ElastiCache"
  metric_name         = "DatabaseMemoryUsagePercentage"
  dimensions          = { CacheClusterId = local.redis_node_ids[count.index] }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 2
  comparison_operator = "GreaterThanThreshold"
  threshold           = 75
  treat_missing_data  = "ignore"
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns
  tags                = local.tags
}

# The page

locals {
  own_metrics = [for name in ["Queued", "Running", "Workers"] : [local.metric_namespace, name, { stat = "Maximum" }]]

  widgets = concat(
    [
      {
        title = "Queue and workers", view = "timeSeries", period = 60, metrics = local.own_metrics
      },
      {
        title   = "Oldest task that waits (s)", view = "timeSeries", period = 60,
        metrics = [[local.metric_namespace, "OldestQueuedSeconds", { stat = "Maximum" }]]
      },
      {
        title   = "Failed, out of time, lost", view = "timeSeries", period = 300,
        metrics = [[local.metric_namespace, "Failed", { stat = "Sum" }]]
      },
      {
        title = "Requests", view = "timeSeries", period = 60,
        metrics = [
          for name in ["RequestCount", "HTTPCode_Target_4XX_Count", "HTTPCode_Target_5XX_Count", "HTTPCode_ELB_5XX_Count"] :
          ["AWS/ApplicationELB", name, "LoadBalancer", aws_lb.this.arn_suffix, { stat = "Sum" }]
        ]
      },
      {
        title = "Time to answer (s)", view = "timeSeries", period = 60,
        metrics = [
          for stat in ["p50", "p99"] :
          ["AWS/ApplicationELB", "TargetResponseTime", "LoadBalancer", aws_lb.this.arn_suffix, { stat = stat }]
        ]
      },
      {
        title = "CPU and memory (%)", view = "timeSeries", period = 60,
        metrics = [
          for pair in setproduct([aws_ecs_service.server.name, aws_ecs_service.worker.name], ["CPUUtilization", "MemoryUtilization"]) :
          ["AWS/ECS", pair[1], "ClusterName", local.cluster_name, "ServiceName", pair[0], { stat = "Maximum" }]
        ]
      },
    ],
    var.create_redis ? [{
      title = "Redis: memory, CPU (%), evictions", view = "timeSeries", period = 60,
      metrics = [
        for pair in setproduct(local.redis_node_ids, ["DatabaseMemoryUsagePercentage", "EngineCPUUtilization", "Evictions"]) :
        ["AWS/ElastiCache", pair[1], "CacheClusterId", pair[0], { stat = "Maximum" }]
      ]
    }] : [],
  )
}

resource "aws_cloudwatch_dashboard" "this" {
  count = var.dashboard ? 1 : 0

  dashboard_name = local.name

  dashboard_body = jsonencode({
    widgets = concat(
      [for index, widget in local.widgets : {
        type       = "metric", x = (index % 3) * 8, y = floor(index / 3) * 6, width = 8, height = 6
        properties = merge(widget, { region = local.region })
      }],
      [{
        type = "log", x = 0, y = 6 * ceil(length(local.widgets) / 3), width = 24, height = 6
        properties = {
          title  = "Warnings and errors"
          region = local.region
          view   = "table"
          query  = "SOURCE '${aws_cloudwatch_log_group.server.name}' | SOURCE '${aws_cloudwatch_log_group.worker.name}' | fields @timestamp, level, event, message | filter level in ['warning', 'error', 'critical'] | sort @timestamp desc | limit 50"
        }
      }],
    )
  })
}
