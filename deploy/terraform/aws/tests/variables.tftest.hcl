# The original's names, the knobs, and what is refused.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  image         = "registry.example.org/lab/script"
  image_tag     = "7"
  auth_provider = "none"
  dns_zone_id   = "Z0"
  dns_subdomain = "scripts"
}

run "the_original_s_variables" {
  variables {
    aws_region                   = "eu-central-1"
    ecs_task_execution_role_arn  = "arn:aws:iam::123456789012:role/old-execution"
    ecs_task_execution_role_name = "old-execution"
    ecs_cluster_id               = "arn:aws:ecs:eu-central-1:123456789012:cluster/old"
    vpc_id                       = "vpc-1"
    vpc_cidr                     = "10.0.0.0/16"
    vpc_public_subnet_ids        = ["subnet-a", "subnet-b"]
    vpc_database_subnet_ids      = ["subnet-c", "subnet-d"]
    dns_subdomain                = "scripts"
    dns_zone_id                  = "Z0"
    auth_provider                = "auth0"
    auth0_domain                 = "lab.eu.auth0.com"
    auth0_audience               = "https://scripts.example.org"
    auth0_client_id              = "client"
    stack_name                   = "Script_Runner"
    worker_count                 = 3
    server_count                 = 1
    image                        = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/script-runner"
    image_tag                    = "latest"
  }

  expect_failures = [check.tasks_in_private_subnets]

  assert {
    condition     = length(aws_vpc.this) + length(aws_ecs_cluster.this) + length(aws_iam_role.execution) + length(aws_nat_gateway.this) == 0
    error_message = "What is given is not made."
  }

  assert {
    condition     = aws_ecs_service.server.cluster == "arn:aws:ecs:eu-central-1:123456789012:cluster/old" && aws_appautoscaling_target.worker.resource_id == "service/old/script-runner-worker"
    error_message = "The given cluster is used, under a name that AWS takes."
  }

  assert {
    condition     = aws_iam_role_policy.execution.role == "old-execution" && aws_ecs_task_definition.server.execution_role_arn == "arn:aws:iam::123456789012:role/old-execution"
    error_message = "The given execution role is used, and gets what it needs."
  }

  assert {
    condition     = toset(aws_ecs_service.server.network_configuration[0].subnets) == toset(["subnet-a", "subnet-b"]) && aws_ecs_service.server.network_configuration[0].assign_public_ip
    error_message = "Without private subnets tasks stand where the original put them (and a warning says so)."
  }

  assert {
    condition     = toset(aws_elasticache_subnet_group.redis[0].subnet_ids) == toset(["subnet-c", "subnet-d"])
    error_message = "Redis stands in the database subnets."
  }

  assert {
    condition     = aws_appautoscaling_target.worker.min_capacity == 3 && aws_appautoscaling_target.worker.max_capacity == 3 && length(aws_appautoscaling_policy.more) == 0 && aws_ecs_service.worker.desired_count == 3 && aws_ecs_service.server.desired_count == 1
    error_message = "worker_count is that many, always."
  }

  assert {
    condition     = aws_ecs_service.worker.launch_type == "FARGATE" && length(aws_ecs_service.worker.capacity_provider_strategy) == 0
    error_message = "A cluster of yours needs no capacity providers."
  }

  assert {
    condition = length(setsubtract([
      { name = "AUTH_PROVIDER", value = "auth0" },
      { name = "AUTH0_DOMAIN", value = "lab.eu.auth0.com" },
      { name = "AUTH0_API_AUDIENCE", value = "https://scripts.example.org" },
      { name = "AUTH0_CLIENT_ID", value = "client" },
    ], jsondecode(aws_ecs_task_definition.server.container_definitions)[0].environment)) == 0
    error_message = "Auth0 is passed on under the names that the server reads."
  }
}

run "a_vpc_of_yours" {
  variables {
    vpc_id                 = "vpc-1"
    vpc_public_subnet_ids  = ["subnet-a", "subnet-b"]
    vpc_private_subnet_ids = ["subnet-c", "subnet-d"]
  }

  assert {
    condition     = toset(aws_ecs_service.worker.network_configuration[0].subnets) == toset(["subnet-c", "subnet-d"]) && !aws_ecs_service.worker.network_configuration[0].assign_public_ip && toset(aws_elasticache_subnet_group.redis[0].subnet_ids) == toset(["subnet-c", "subnet-d"])
    error_message = "Tasks stand in the private subnets, and Redis too where no others are given."
  }

  assert {
    condition     = aws_security_group.server.vpc_id == "vpc-1" && aws_lb_target_group.server.vpc_id == "vpc-1"
    error_message = "Everything is in that VPC."
  }
}

run "another_registry" {
  variables {
    image_pull_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:registry-abcdef"
  }

  assert {
    condition     = !strcontains(aws_iam_role_policy.execution.policy, "ecr:") && !contains(flatten([for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : statement.Resource]), "*")
    error_message = "Without ECR nothing at all may be done to everything."
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].repositoryCredentials.credentialsParameter == "arn:aws:secretsmanager:eu-central-1:123456789012:secret:registry-abcdef" && strcontains(aws_iam_role_policy.execution.policy, "secret:registry-abcdef")
    error_message = "The registry's password is handed on, and may be read."
  }
}

run "environment_and_secrets" {
  variables {
    environment_variables = { LIMS_URL = "https://lims.example.org", SCRIPT_RUNNER_LOG_LEVEL = "warning" }
    secrets = {
      LIMS_TOKEN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:lims-abcdef:token::"
      OTHER      = "arn:aws:ssm:eu-central-1:123456789012:parameter/other"
    }
    kms_key_arn        = "arn:aws:kms:eu-central-1:123456789012:key/1"
    worker_policy_arns = { lims = "arn:aws:iam::123456789012:policy/lims" }
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].environment, { name = "LIMS_URL", value = "https://lims.example.org" })
    error_message = "Variables reach the worker."
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].secrets, { name = "LIMS_TOKEN", valueFrom = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:lims-abcdef:token::" })
    error_message = "Secrets reach the worker by reference."
  }

  assert {
    condition     = contains(flatten([for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : statement.Resource if contains(statement.Action, "secretsmanager:GetSecretValue")]), "arn:aws:secretsmanager:eu-central-1:123456789012:secret:lims-abcdef")
    error_message = "ECS may read the secret, by its ARN without the key in it."
  }

  assert {
    condition     = flatten([for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : statement.Resource if contains(statement.Action, "ssm:GetParameters")]) == ["arn:aws:ssm:eu-central-1:123456789012:parameter/other"]
    error_message = "ECS may read the parameter."
  }

  assert {
    condition     = one([for rule in aws_s3_bucket_server_side_encryption_configuration.artifacts.rule : rule.apply_server_side_encryption_by_default[0].kms_master_key_id]) == var.kms_key_arn && aws_elasticache_replication_group.redis[0].kms_key_id == var.kms_key_arn && strcontains(aws_iam_role_policy.worker.policy, "kms:GenerateDataKey")
    error_message = "A key of yours is used, and may be."
  }

  assert {
    condition     = aws_iam_role_policy_attachment.worker["lims"].policy_arn == "arn:aws:iam::123456789012:policy/lims"
    error_message = "A script may be given more."
  }
}

run "a_redis_of_yours" {
  variables {
    create_redis              = false
    redis_url                 = "rediss://clustercfg.mine.abc123.memorydb.eu-central-1.amazonaws.com:6379/0"
    redis_username            = "runner"
    redis_password_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-abcdef"
  }

  assert {
    condition     = length(aws_elasticache_replication_group.redis) + length(aws_security_group.redis) + length(aws_secretsmanager_secret.redis) + length(aws_cloudwatch_metric_alarm.redis_memory) == 0
    error_message = "No second Redis is made."
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_REDIS_USERNAME", value = "runner" }) && jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].secrets == [{ name = "SCRIPT_RUNNER_REDIS_PASSWORD", valueFrom = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-abcdef" }]
    error_message = "Name and password of yours are used."
  }
}

run "a_password_of_yours" {
  variables {
    redis_password_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-abcdef"
  }

  assert {
    condition     = aws_elasticache_replication_group.redis[0].auth_token == "given0123456789abcdef" && length(aws_secretsmanager_secret.redis) == 0
    error_message = "Valkey asks for the password in your secret."
  }
}

run "spot" {
  variables {
    worker_spot           = true
    worker_on_demand_base = 2
  }

  assert {
    condition     = { for strategy in aws_ecs_service.worker.capacity_provider_strategy : strategy.capacity_provider => [coalesce(strategy.base, 0), strategy.weight] } == { FARGATE = [2, 0], FARGATE_SPOT = [0, 1] }
    error_message = "Two on demand, the others on Spot."
  }

  assert {
    condition     = aws_ecs_service.server.launch_type == "FARGATE"
    error_message = "Servers are never on Spot."
  }
}

run "many_workers" {
  variables {
    worker_min_count   = 2
    worker_max_count   = 200
    worker_concurrency = 4
  }

  assert {
    condition     = length(aws_appautoscaling_policy.more[0].step_scaling_policy_configuration[0].step_adjustment) <= 20 && length(aws_appautoscaling_policy.fewer[0].step_scaling_policy_configuration[0].step_adjustment) <= 20
    error_message = "A policy takes at most 20 steps."
  }

  assert {
    condition     = max([for step in aws_appautoscaling_policy.more[0].step_scaling_policy_configuration[0].step_adjustment : step.scaling_adjustment]...) == 200
    error_message = "The last step is the most."
  }

  assert {
    condition     = min([for step in aws_appautoscaling_policy.fewer[0].step_scaling_policy_configuration[0].step_adjustment : step.scaling_adjustment]...) == 2
    error_message = "Never fewer than the fewest."
  }

  assert {
    condition = alltrue([
      for index in range(1, length(local.steps)) :
      local.steps[index].from == local.steps[index - 1].to && local.steps[index].workers > local.steps[index - 1].workers
    ])
    error_message = "Steps leave no gap, and rise."
  }

  assert {
    condition     = alltrue([for step in local.steps : step.workers * 4 >= step.to - 1 if step.to != null])
    error_message = "Each step has room for its whole backlog."
  }
}

run "knobs" {
  variables {
    nat_gateway_per_zone         = true
    zone_count                   = 3
    worker_cpu                   = 4096
    worker_memory                = 16384
    worker_ephemeral_storage_gib = 100
    cpu_architecture             = "ARM64"
    readonly_root_filesystem     = true
    redirect_downloads           = true
    redis_replica_count          = 0
    deletion_protection          = false
    access_logs_bucket           = "my-logs"
    worker_health_check          = []
    allowed_cidrs                = ["192.0.2.0/24"]
    dashboard                    = false
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 3 && length(aws_subnet.private) == 3
    error_message = "A NAT gateway in each of three zones."
  }

  assert {
    condition     = aws_ecs_task_definition.worker.cpu == "4096" && aws_ecs_task_definition.worker.memory == "16384" && aws_ecs_task_definition.worker.ephemeral_storage[0].size_in_gib == 100 && aws_ecs_task_definition.worker.runtime_platform[0].cpu_architecture == "ARM64"
    error_message = "A worker is as large as asked for."
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].readonlyRootFilesystem && jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].mountPoints[0].containerPath == "/tmp"
    error_message = "A read-only image has a place for run folders."
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.server.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_REDIRECT_DOWNLOADS", value = "1" }) && length(aws_s3_bucket_cors_configuration.artifacts) == 1
    error_message = "Downloads go to the bucket, from pages in browsers, too."
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.server.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_REDIS_REPLICAS", value = "0" }) && !aws_elasticache_replication_group.redis[0].automatic_failover_enabled
    error_message = "Without replicas nobody waits for one."
  }

  assert {
    condition     = aws_lb.this.access_logs[0].bucket == "my-logs" && aws_lb.this.access_logs[0].enabled && !aws_lb.this.enable_deletion_protection
    error_message = "Access logs are written where asked for."
  }

  assert {
    condition     = toset([for rule in values(aws_vpc_security_group_ingress_rule.world) : "${rule.from_port} ${rule.cidr_ipv4}"]) == toset(["80 192.0.2.0/24", "443 192.0.2.0/24"])
    error_message = "Only those come in who may."
  }

  assert {
    condition     = !contains(keys(jsondecode(aws_ecs_task_definition.worker.container_definitions)[0]), "healthCheck") && length(aws_cloudwatch_dashboard.this) == 0
    error_message = "What was switched off is not there."
  }
}

run "a_certificate_of_yours" {
  variables {
    dns_subdomain   = null
    dns_zone_id     = null
    certificate_arn = "arn:aws:acm:eu-central-1:123456789012:certificate/mine"
    domain_name     = "scripts.example.com"
  }

  assert {
    condition     = aws_lb_listener.https.certificate_arn == "arn:aws:acm:eu-central-1:123456789012:certificate/mine" && output.url == "https://scripts.example.com" && length(aws_route53_record.this) == 0
    error_message = "A certificate of yours needs no zone."
  }
}

run "no_certificate" {
  command = plan

  variables {
    dns_subdomain = null
    dns_zone_id   = null
  }

  expect_failures = [var.dns_subdomain]
}

run "a_zone_is_missing" {
  command = plan

  variables {
    dns_zone_id = null
  }

  expect_failures = [var.dns_subdomain]
}

run "auth0_without_a_domain" {
  command = plan

  variables {
    auth_provider = "auth0"
  }

  expect_failures = [var.auth0_domain]
}

run "another_region" {
  command = plan

  variables {
    aws_region = "us-east-1"
  }

  expect_failures = [terraform_data.region]
}

run "redis_in_public_subnets" {
  command = plan

  variables {
    vpc_id                = "vpc-1"
    vpc_public_subnet_ids = ["subnet-a", "subnet-b"]
  }

  expect_failures = [var.vpc_database_subnet_ids, check.tasks_in_private_subnets]
}

run "redis_without_tls" {
  command = plan

  variables {
    create_redis              = false
    redis_url                 = "redis://redis.internal:6379/0"
    redis_password_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-abcdef"
  }

  expect_failures = [var.redis_url]
}

run "redis_with_its_password_in_the_url" {
  command = plan

  variables {
    create_redis              = false
    redis_url                 = "rediss://user:secret@redis.internal:6379/0"
    redis_password_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-abcdef"
  }

  expect_failures = [var.redis_url]
}

run "redis_without_a_password" {
  command = plan

  variables {
    create_redis = false
    redis_url    = "rediss://redis.internal:6379/0"
  }

  expect_failures = [var.redis_password_secret_arn]
}

run "a_setting_of_the_module" {
  command = plan

  variables {
    environment_variables = { SCRIPT_RUNNER_LOG_FORMAT = "text" }
  }

  expect_failures = [var.environment_variables]
}

run "a_secret_in_plain_words" {
  command = plan

  variables {
    environment_variables = { SCRIPT_RUNNER_REDIS_PASSWORD = "x" }
  }

  expect_failures = [var.environment_variables]
}

run "a_secret_that_is_no_arn" {
  command = plan

  variables {
    secrets = { LIMS_TOKEN = "hunter2" }
  }

  expect_failures = [var.secrets]
}

run "a_tag_and_a_digest" {
  command = plan

  variables {
    image = "registry.example.org/lab/script@sha256:0000000000000000000000000000000000000000000000000000000000000000"
  }

  expect_failures = [var.image_tag]
}

run "a_size_that_fargate_does_not_have" {
  command = plan

  variables {
    worker_cpu    = 1024
    worker_memory = 1024
  }

  expect_failures = [var.worker_memory]
}
