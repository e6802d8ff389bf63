# How many workers there are: as many as the backlog (tasks that may start, and those that run) asks for, down to none.
#
# Servers log the queue every 30 s, also while there is no worker, and CloudWatch makes metrics of it (watch.tf).
# Two alarms look at them once a minute. Each hands the backlog to a table "so much backlog: so many workers", so that
# no step depends on what was asked for before and nothing runs away while new workers are starting:
#   more   at once, when there is more backlog than the living workers have room for; from none, too
#   fewer  when one worker less would do, for worker_idle_minutes in a row; with no backlog at all, the fewest allowed
# A worker in which scripts run is protected: scaling in takes idle ones.

locals {
  room = var.worker_concurrency # of one worker

  # up to 19 numbers of workers, since a policy takes 20 steps: each one up to 11, then in growing strides to the most
  worker_counts = distinct([for step in range(1, 20) :
    min(local.worker_max_count, max(step, ceil(pow(local.worker_max_count, (step - 1) / 18))))
    if local.worker_max_count > 0
  ])

  # backlog from (included) … to (left out): workers
  steps = [for index, count in local.worker_counts : {
    from    = index == 0 ? 1 : local.worker_counts[index - 1] * local.room + 1
    to      = index == length(local.worker_counts) - 1 ? null : count * local.room + 1
    workers = count
  }]

  scales = local.worker_min_count < local.worker_max_count

  # what "fewer" is told when there is nothing to take away: more than any backlog that could mean so
  no_fewer = local.worker_max_count * local.room + 1
}

resource "aws_appautoscaling_target" "worker" {
  service_namespace  = "ecs"
  resource_id        = "service/${local.cluster_name}/${aws_ecs_service.worker.name}"
  scalable_dimension = "ecs:service:DesiredCount"
  min_capacity       = local.worker_min_count
  max_capacity       = local.worker_max_count
  tags               = local.tags
}

resource "aws_appautoscaling_policy" "more" {
  count = local.scales ? 1 : 0

  name               = "${local.name}-more"
  policy_type        = "StepScaling"
  service_namespace  = aws_appautoscaling_target.worker.service_namespace
  resource_id        = aws_appautoscaling_target.worker.resource_id
  scalable_dimension = aws_appautoscaling_target.worker.scalable_dimension

  step_scaling_policy_configuration {
    adjustment_type         = "ExactCapacity"
    metric_aggregation_type = "Maximum"
    cooldown                = 60

    # bounds are distances from the alarm's threshold, which is 0
    dynamic "step_adjustment" {
      for_each = local.steps

      content {
        metric_interval_lower_bound = step_adjustment.key == 0 ? 0 : step_adjustment.value.from
        metric_interval_upper_bound = step_adjustment.value.to
        scaling_adjustment          = step_adjustment.value.workers
      }
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "more" {
  count = local.scales ? 1 : 0

  alarm_name          = "${local.name}-more-workers"
  alarm_description   = "There is more backlog than the workers of ${local.name} have room for. Scales; asks nobody to act."
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_appautoscaling_policy.more[0].arn]
  tags                = local.tags

  metric_query {
    id          = "wanted"
    label       = "backlog beyond the room there is"
    expression  = "IF(backlog > workers * ${local.room}, backlog, 0)"
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
}

resource "aws_appautoscaling_policy" "fewer" {
  count = local.scales ? 1 : 0

  name               = "${local.name}-fewer"
  policy_type        = "StepScaling"
  service_namespace  = aws_appautoscaling_target.worker.service_namespace
  resource_id        = aws_appautoscaling_target.worker.resource_id
  scalable_dimension = aws_appautoscaling_target.worker.scalable_dimension

  step_scaling_policy_configuration {
    adjustment_type         = "ExactCapacity"
    metric_aggregation_type = "Maximum"
    cooldown                = 120

    # no backlog: none, or the fewest allowed. Here the alarm breaches below its threshold: bounds are negative, and
    # the upper one is included
    step_adjustment {
      metric_interval_upper_bound = -local.no_fewer
      scaling_adjustment          = local.worker_min_count
    }

    dynamic "step_adjustment" {
      for_each = local.steps

      content {
        metric_interval_lower_bound = step_adjustment.value.from - 1 - local.no_fewer
        metric_interval_upper_bound = step_adjustment.value.to == null ? 0 : step_adjustment.value.to - 1 - local.no_fewer
        scaling_adjustment          = max(step_adjustment.value.workers, local.worker_min_count)
      }
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "fewer" {
  count = local.scales ? 1 : 0

  alarm_name          = "${local.name}-fewer-workers"
  alarm_description   = "Fewer workers of ${local.name} would do; in alarm also while there is nothing to do and no worker. Scales; asks nobody to act."
  comparison_operator = "LessThanThreshold"
  threshold           = local.no_fewer
  evaluation_periods  = var.worker_idle_minutes
  datapoints_to_alarm = var.worker_idle_minutes
  treat_missing_data  = "notBreaching" # servers that say nothing say nothing of idleness
  alarm_actions       = [aws_appautoscaling_policy.fewer[0].arn]
  tags                = local.tags

  metric_query {
    id          = "spare"
    label       = "backlog, while one worker less had room for it"
    expression  = "IF(backlog <= IF(workers > 1, workers - 1, 0) * ${local.room}, backlog, ${local.no_fewer})"
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
}
