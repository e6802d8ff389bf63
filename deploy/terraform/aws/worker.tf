# The workers: a service without a door, whose number follows the work (scaling.tf).

locals {
  # capacity providers belong to a cluster; one of yours need have none unless you want Spot
  uses_capacity_providers = local.makes_cluster || var.worker_spot

  worker_environment = merge(local.environment, local.optional_environment, {
    SCRIPT_RUNNER_METRICS                = "127.0.0.1:${local.metrics_port}" # the health check asks there
    SCRIPT_RUNNER_CONCURRENCY            = tostring(var.worker_concurrency)
    SCRIPT_RUNNER_LEASE_SECONDS          = tostring(var.worker_lease_seconds)
    SCRIPT_RUNNER_DRAIN_TIMEOUT          = tostring(var.worker_drain_seconds)
    SCRIPT_RUNNER_ECS_PROTECTION_MINUTES = tostring(var.worker_protection_minutes)
  })
}

resource "aws_ecs_task_definition" "worker" {
  family                   = "${local.name}-worker"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.worker_cpu
  memory                   = var.worker_memory
  execution_role_arn       = local.execution_role_arn
  task_role_arn            = aws_iam_role.worker.arn
  tags                     = local.tags

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.cpu_architecture
  }

  # Fargate takes 21 and more; 20 is what every task has
  dynamic "ephemeral_storage" {
    for_each = var.worker_ephemeral_storage_gib > 20 ? [var.worker_ephemeral_storage_gib] : []

    content {
      size_in_gib = ephemeral_storage.value
    }
  }

  dynamic "volume" {
    for_each = var.readonly_root_filesystem ? ["tmp"] : []

    content {
      name = volume.value
    }
  }

  container_definitions = jsonencode([{ for key, value in merge(local.container, {
    name        = "worker"
    command     = var.worker_command
    stopTimeout = 120 # the most that Fargate grants
    environment = [for name, text in merge(var.environment_variables, local.worker_environment) : { name = name, value = text } if text != null]
    # patient: what is unhealthy is killed together with the scripts in it
    healthCheck = length(var.worker_health_check) == 0 ? null : { command = var.worker_health_check, interval = 30, timeout = 5, retries = 10, startPeriod = 60 }
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        "awslogs-group"         = aws_cloudwatch_log_group.worker.name
        "awslogs-region"        = local.region
        "awslogs-stream-prefix" = "worker"
      }
    }
  }) : key => value if value != null }])
}

resource "aws_ecs_service" "worker" {
  name                               = "${local.name}-worker"
  cluster                            = local.cluster_id
  task_definition                    = aws_ecs_task_definition.worker.arn
  desired_count                      = local.worker_min_count
  launch_type                        = local.uses_capacity_providers ? null : "FARGATE"
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  propagate_tags                     = "SERVICE"
  tags                               = local.tags

  dynamic "capacity_provider_strategy" {
    for_each = local.uses_capacity_providers ? [1] : []

    content {
      capacity_provider = "FARGATE"
      base              = var.worker_spot ? var.worker_on_demand_base : 0
      weight            = var.worker_spot ? 0 : 1
    }
  }

  dynamic "capacity_provider_strategy" {
    for_each = var.worker_spot ? [1] : []

    content {
      capacity_provider = "FARGATE_SPOT"
      weight            = 1
    }
  }

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = local.task_subnet_ids
    security_groups  = [aws_security_group.worker.id]
    assign_public_ip = local.are_tasks_public
  }

  lifecycle {
    ignore_changes = [desired_count] # it follows the work
  }

  depends_on = [
    aws_ecs_cluster_capacity_providers.this, aws_iam_role_policy.execution, aws_iam_role_policy.worker, aws_s3_bucket_policy.artifacts,
  ]
}
