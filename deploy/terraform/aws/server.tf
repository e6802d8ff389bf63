# The servers: a service behind the load balancer that takes a bad release back by itself.

resource "aws_ecs_task_definition" "server" {
  family                   = "${local.name}-server"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.server_cpu
  memory                   = var.server_memory
  execution_role_arn       = local.execution_role_arn
  task_role_arn            = aws_iam_role.server.arn
  tags                     = local.tags

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.cpu_architecture
  }

  dynamic "volume" {
    for_each = var.readonly_root_filesystem ? ["tmp"] : []

    content {
      name = volume.value
    }
  }

  container_definitions = jsonencode([{ for key, value in merge(local.container, {
    name         = "server"
    command      = var.server_command
    stopTimeout  = 30
    portMappings = [{ containerPort = local.server_port, hostPort = local.server_port, protocol = "tcp" }]
    environment  = [for name, text in merge(var.environment_variables, local.server_environment) : { name = name, value = text } if text != null]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        "awslogs-group"         = aws_cloudwatch_log_group.server.name
        "awslogs-region"        = local.region
        "awslogs-stream-prefix" = "server"
      }
    }
  }) : key => value if value != null }])
}

locals {
  server_environment = merge(local.environment, local.optional_environment, {
    SCRIPT_RUNNER_HOST               = "0.0.0.0"
    SCRIPT_RUNNER_PORT               = tostring(local.server_port)
    SCRIPT_RUNNER_REPORT_SECONDS     = "30"
    SCRIPT_RUNNER_REDIRECT_DOWNLOADS = var.redirect_downloads ? "1" : null
    SCRIPT_RUNNER_METRICS            = "127.0.0.1:${local.metrics_port}" # for a collector beside it; nobody else gets in
    AUTH_PROVIDER                    = var.auth_provider
    AUTH0_DOMAIN                     = var.auth0_domain
    AUTH0_API_AUDIENCE               = var.auth0_audience
    AUTH0_CLIENT_ID                  = var.auth0_client_id
  })
}

resource "aws_ecs_service" "server" {
  name                               = "${local.name}-server"
  cluster                            = local.cluster_id
  task_definition                    = aws_ecs_task_definition.server.arn
  desired_count                      = var.server_count
  launch_type                        = "FARGATE"
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  health_check_grace_period_seconds  = 60
  propagate_tags                     = "SERVICE"
  tags                               = local.tags

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = local.task_subnet_ids
    security_groups  = [aws_security_group.server.id]
    assign_public_ip = local.are_tasks_public
  }

  load_balancer {
    target_group_arn = aws_lb_target_group.server.arn
    container_name   = "server"
    container_port   = local.server_port
  }

  depends_on = [aws_lb_listener.https, aws_iam_role_policy.execution, aws_iam_role_policy.server, aws_s3_bucket_policy.artifacts]
}
