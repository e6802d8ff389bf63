# What comes of the fewest words: safe, private, and able to go down to no worker.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  image         = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/my/script"
  image_tag     = "1.2.3"
  auth_provider = "none"
  dns_zone_id   = "Z0"
  dns_subdomain = "scripts"
}

run "defaults" {
  # The network

  assert {
    condition     = output.url == "https://scripts.example.org"
    error_message = "The address is the name in the zone, by HTTPS."
  }

  assert {
    condition     = toset(aws_ecs_service.server.network_configuration[0].subnets) == toset(aws_subnet.private[*].id) && toset(aws_ecs_service.worker.network_configuration[0].subnets) == toset(aws_subnet.private[*].id)
    error_message = "Tasks stand in private subnets."
  }

  assert {
    condition     = !aws_ecs_service.server.network_configuration[0].assign_public_ip && !aws_ecs_service.worker.network_configuration[0].assign_public_ip
    error_message = "Tasks have no public address."
  }

  assert {
    condition     = alltrue([for subnet in concat(aws_subnet.public, aws_subnet.private, aws_subnet.database) : subnet.map_public_ip_on_launch != true])
    error_message = "No subnet gives out public addresses by itself."
  }

  assert {
    condition     = length(distinct(concat(aws_subnet.public[*].cidr_block, aws_subnet.private[*].cidr_block, aws_subnet.database[*].cidr_block))) == 6
    error_message = "Three kinds of subnets in two zones, none over another."
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.out) == 2
    error_message = "One NAT gateway serves both zones unless more are asked for."
  }

  assert {
    condition     = toset(aws_vpc_endpoint.s3[0].route_table_ids) == toset(aws_route_table.private[*].id)
    error_message = "Artifacts go to S3 past the NAT gateway."
  }

  # Redis

  assert {
    condition     = toset(aws_elasticache_subnet_group.redis[0].subnet_ids) == toset(aws_subnet.database[*].id)
    error_message = "Redis stands in subnets without a route out of the VPC."
  }

  assert {
    condition = alltrue([
      for rule in values(aws_vpc_security_group_ingress_rule.redis) :
      rule.security_group_id == aws_security_group.redis[0].id && rule.cidr_ipv4 == null && rule.cidr_ipv6 == null && rule.prefix_list_id == null
    ])
    error_message = "No address range reaches Redis."
  }

  assert {
    condition     = toset([for rule in values(aws_vpc_security_group_ingress_rule.redis) : rule.referenced_security_group_id]) == toset([aws_security_group.server.id, aws_security_group.worker.id])
    error_message = "Servers and workers reach Redis, and nobody else."
  }

  assert {
    condition     = aws_elasticache_replication_group.redis[0].transit_encryption_enabled && aws_elasticache_replication_group.redis[0].transit_encryption_mode == "required"
    error_message = "Redis speaks TLS only."
  }

  assert {
    condition     = tobool(aws_elasticache_replication_group.redis[0].at_rest_encryption_enabled)
    error_message = "Redis is encrypted at rest."
  }

  assert {
    condition     = length(aws_elasticache_replication_group.redis[0].auth_token) >= 16 && aws_elasticache_replication_group.redis[0].auth_token == aws_secretsmanager_secret_version.redis[0].secret_string
    error_message = "Redis asks for the password that is in the secret."
  }

  assert {
    condition     = aws_elasticache_replication_group.redis[0].engine == "valkey" && aws_elasticache_replication_group.redis[0].automatic_failover_enabled && aws_elasticache_replication_group.redis[0].multi_az_enabled && aws_elasticache_replication_group.redis[0].num_cache_clusters == 2
    error_message = "Valkey with a replica in another zone, and failover."
  }

  assert {
    condition     = aws_elasticache_replication_group.redis[0].parameter_group_name == aws_elasticache_parameter_group.redis[0].name && contains([for parameter in aws_elasticache_parameter_group.redis[0].parameter : "${parameter.name}=${parameter.value}"], "maxmemory-policy=noeviction")
    error_message = "Redis evicts nothing."
  }

  # The front door

  assert {
    condition     = aws_lb_listener.http.default_action[0].type == "redirect" && aws_lb_listener.http.default_action[0].redirect[0].protocol == "HTTPS" && aws_lb_listener.http.default_action[0].target_group_arn == null
    error_message = "HTTP is redirected, and nothing else."
  }

  assert {
    condition     = aws_lb_listener.https.protocol == "HTTPS" && startswith(aws_lb_listener.https.ssl_policy, "ELBSecurityPolicy-TLS13-1-2") && aws_lb_listener.https.certificate_arn == aws_acm_certificate_validation.this[0].certificate_arn
    error_message = "HTTPS with TLS 1.2 at least, and the certificate whose proof was seen."
  }

  assert {
    condition     = aws_lb.this.idle_timeout > 60 && aws_lb.this.idle_timeout < 75
    error_message = "The load balancer must bear the longest wait of a call (60 s), and give up an idle connection before the server does (75 s)."
  }

  assert {
    condition     = aws_lb.this.drop_invalid_header_fields && aws_lb.this.enable_deletion_protection && !aws_lb.this.internal
    error_message = "The load balancer is public, drops malformed headers and is not destroyed in passing."
  }

  assert {
    condition     = aws_lb_target_group.server.health_check[0].path == "/health"
    error_message = "ECS replaces servers that are dead, not those whose Redis is away."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.server_from_load_balancer.referenced_security_group_id == aws_security_group.load_balancer.id && aws_vpc_security_group_ingress_rule.server_from_load_balancer.cidr_ipv4 == null
    error_message = "Servers are reached from the load balancer only."
  }

  # Services

  assert {
    condition     = alltrue([for service in [aws_ecs_service.server, aws_ecs_service.worker] : service.deployment_circuit_breaker[0].enable && service.deployment_circuit_breaker[0].rollback && service.deployment_minimum_healthy_percent == 100])
    error_message = "A release that does not start is taken back, and until then the old one stays."
  }

  assert {
    condition     = aws_ecs_service.server.desired_count == 2 && aws_ecs_service.worker.desired_count == 0
    error_message = "Two servers, and no worker until there is work."
  }

  assert {
    condition     = [for strategy in aws_ecs_service.worker.capacity_provider_strategy : strategy.capacity_provider] == ["FARGATE"]
    error_message = "No Spot unless asked for."
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].image == "123456789012.dkr.ecr.eu-central-1.amazonaws.com/my/script:1.2.3"
    error_message = "The image is the one named, with its tag."
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.server.container_definitions)[0].command == ["script-runner", "serve"] && jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].command == ["script-runner", "worker"]
    error_message = "One image, two commands."
  }

  assert {
    condition = alltrue([
      for definition in [aws_ecs_task_definition.server, aws_ecs_task_definition.worker] :
      [for secret in jsondecode(definition.container_definitions)[0].secrets : secret.name] == ["SCRIPT_RUNNER_REDIS_PASSWORD"]
    ])
    error_message = "Both get the password of Redis from the secret."
  }

  assert {
    condition = alltrue([
      for definition in [aws_ecs_task_definition.server, aws_ecs_task_definition.worker] :
      !strcontains(definition.container_definitions, "0123456789abcdef")
    ])
    error_message = "The password stands in no task definition."
  }

  assert {
    condition = alltrue([
      for definition in [aws_ecs_task_definition.server, aws_ecs_task_definition.worker] :
      contains(jsondecode(definition.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_REDIS_URL", value = "rediss://master.script-runner-redis.abc123.euc1.cache.amazonaws.com:6379/0" })
      && contains(jsondecode(definition.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_REDIS_REPLICAS", value = "1" })
      && contains(jsondecode(definition.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_STORE", value = "s3://script-runner-1/artifacts" })
    ])
    error_message = "Both know Redis by TLS, that a replica must follow, and the bucket."
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.server.container_definitions)[0].environment, { name = "AUTH_PROVIDER", value = "none" }) && !strcontains(aws_ecs_task_definition.server.container_definitions, "AUTH0")
    error_message = "The server is told who may ask, and nothing that was not said."
  }

  assert {
    condition     = !strcontains(aws_ecs_task_definition.worker.container_definitions, "AUTH_PROVIDER")
    error_message = "Workers need not know who may ask."
  }

  # Artifacts

  assert {
    condition     = alltrue([for flag in ["block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"] : aws_s3_bucket_public_access_block.artifacts[flag]])
    error_message = "Nothing in the bucket can become public."
  }

  assert {
    condition     = one([for rule in aws_s3_bucket_server_side_encryption_configuration.artifacts.rule : rule.apply_server_side_encryption_by_default[0].sse_algorithm]) == "AES256"
    error_message = "The bucket is encrypted."
  }

  assert {
    condition     = jsondecode(aws_s3_bucket_policy.artifacts.policy).Statement[0].Effect == "Deny" && jsondecode(aws_s3_bucket_policy.artifacts.policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false" && length(jsondecode(aws_s3_bucket_policy.artifacts.policy).Statement) == 1
    error_message = "The bucket denies plain HTTP, and allows nobody anything."
  }

  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.artifacts.rule[0].status == "Enabled" && aws_s3_bucket_lifecycle_configuration.artifacts.rule[0].expiration[0].days == 30 && aws_s3_bucket_lifecycle_configuration.artifacts.rule[0].abort_incomplete_multipart_upload[0].days_after_initiation == 1
    error_message = "What was left behind goes after 30 days, unfinished uploads after one."
  }

  assert {
    condition     = length(aws_s3_bucket_cors_configuration.artifacts) == 0
    error_message = "No page in a browser is let in unless downloads are redirected."
  }

  # Roles

  assert {
    condition = toset(flatten([
      for policy in [aws_iam_role_policy.execution, aws_iam_role_policy.server, aws_iam_role_policy.worker] :
      [for statement in jsondecode(policy.policy).Statement : statement.Action if contains(statement.Resource, "*")]
    ])) == toset(["ecr:GetAuthorizationToken"])
    error_message = "Only the one action that knows no resource may be done to everything."
  }

  assert {
    condition = alltrue(flatten([
      for policy in [aws_iam_role_policy.execution, aws_iam_role_policy.server, aws_iam_role_policy.worker] :
      [for statement in jsondecode(policy.policy).Statement : [for action in statement.Action : !strcontains(action, "*")]]
    ]))
    error_message = "Every action is named."
  }

  assert {
    condition     = toset(flatten([for statement in jsondecode(aws_iam_role_policy.server.policy).Statement : statement.Resource])) == toset(["arn:aws:s3:::script-runner-1", "arn:aws:s3:::script-runner-1/artifacts/*"])
    error_message = "Servers may touch artifacts, and nothing else."
  }

  assert {
    condition     = contains(flatten([for statement in jsondecode(aws_iam_role_policy.worker.policy).Statement : statement.Resource if contains(statement.Action, "ecs:UpdateTaskProtection")]), "arn:aws:ecs:eu-central-1:123456789012:task/script-runner/*")
    error_message = "Workers may protect tasks of their own cluster."
  }

  assert {
    condition     = !strcontains(aws_iam_role_policy.server.policy, "ecs:") && !strcontains(aws_iam_role_policy.worker.policy, "secretsmanager:")
    error_message = "Servers protect nothing; workers, and so scripts, read no secrets."
  }

  assert {
    condition     = flatten([for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : statement.Resource if contains(statement.Action, "ecr:BatchGetImage")]) == ["arn:aws:ecr:eu-central-1:123456789012:repository/my/script"]
    error_message = "ECS may pull this one image."
  }

  assert {
    condition     = flatten([for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : statement.Resource if contains(statement.Action, "secretsmanager:GetSecretValue")]) == [aws_secretsmanager_secret.redis[0].arn]
    error_message = "ECS may read this one secret."
  }

  assert {
    condition     = aws_ecs_task_definition.server.task_role_arn == aws_iam_role.server.arn && aws_ecs_task_definition.worker.task_role_arn == aws_iam_role.worker.arn && aws_ecs_task_definition.worker.execution_role_arn == aws_iam_role.execution[0].arn
    error_message = "Each has the role made for it."
  }

  # Scaling

  assert {
    condition     = aws_appautoscaling_target.worker.min_capacity == 0 && aws_appautoscaling_target.worker.max_capacity == 4 && aws_appautoscaling_target.worker.resource_id == "service/script-runner/script-runner-worker"
    error_message = "From none to four workers."
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.more[0].threshold == 0 && aws_cloudwatch_metric_alarm.more[0].evaluation_periods == 1 && toset(aws_cloudwatch_metric_alarm.more[0].alarm_actions) == toset([aws_appautoscaling_policy.more[0].arn])
    error_message = "A backlog without room wakes workers within a minute of being seen, from none, too."
  }

  assert {
    condition     = one([for query in aws_cloudwatch_metric_alarm.more[0].metric_query : query.expression if query.return_data == true]) == "IF(backlog > workers * 1, backlog, 0)"
    error_message = "More workers when there is more backlog than living workers have room for."
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.fewer[0].evaluation_periods == 10 && aws_cloudwatch_metric_alarm.fewer[0].datapoints_to_alarm == 10 && aws_cloudwatch_metric_alarm.fewer[0].treat_missing_data == "notBreaching"
    error_message = "Fewer workers only after ten minutes in a row, and not because servers fell silent."
  }

  assert {
    condition     = one([for query in aws_cloudwatch_metric_alarm.fewer[0].metric_query : query.expression if query.return_data == true]) == "IF(backlog <= IF(workers > 1, workers - 1, 0) * 1, backlog, 5)" && aws_cloudwatch_metric_alarm.fewer[0].threshold == 5
    error_message = "Fewer workers when one less had room for the backlog."
  }

  assert {
    condition     = toset([for step in aws_appautoscaling_policy.more[0].step_scaling_policy_configuration[0].step_adjustment : "${step.metric_interval_lower_bound}:${step.metric_interval_upper_bound == null ? "" : step.metric_interval_upper_bound}=${step.scaling_adjustment}"]) == toset(["0:2=1", "2:3=2", "3:4=3", "4:=4"])
    error_message = "Backlog 1: one worker; 2: two; 3: three; 4 and more: four."
  }

  assert {
    condition     = toset([for step in aws_appautoscaling_policy.fewer[0].step_scaling_policy_configuration[0].step_adjustment : "${step.metric_interval_lower_bound == null ? "" : step.metric_interval_lower_bound}:${step.metric_interval_upper_bound}=${step.scaling_adjustment}"]) == toset([":-5=0", "-5:-4=1", "-4:-3=2", "-3:-2=3", "-2:0=4"])
    error_message = "Backlog 0: no worker; 1: one; 2: two; 3: three; more: four."
  }

  assert {
    condition     = aws_appautoscaling_policy.more[0].step_scaling_policy_configuration[0].adjustment_type == "ExactCapacity" && aws_appautoscaling_policy.fewer[0].step_scaling_policy_configuration[0].adjustment_type == "ExactCapacity"
    error_message = "A step says how many workers, not how many more."
  }

  # Being told

  assert {
    condition     = alltrue([for filter in values(aws_cloudwatch_log_metric_filter.queue) : filter.pattern == "{ $.event = \"queue\" }" && filter.log_group_name == aws_cloudwatch_log_group.server.name])
    error_message = "The queue is read from what servers log."
  }

  assert {
    condition     = { for filter in values(aws_cloudwatch_log_metric_filter.queue) : filter.metric_transformation[0].name => filter.metric_transformation[0].value } == { Queued = "$.queued", Running = "$.running", Backlog = "$.backlog", OldestQueuedSeconds = "$.oldest_seconds", Workers = "$.workers" }
    error_message = "Each metric is a field of that event."
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.server.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_LOG_FORMAT", value = "json" }) && contains(jsondecode(aws_ecs_task_definition.server.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_REPORT_SECONDS", value = "30" })
    error_message = "Servers report the queue as JSON."
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.oldest.metric_name == "OldestQueuedSeconds" && aws_cloudwatch_metric_alarm.oldest.threshold == 900 && aws_cloudwatch_metric_alarm.failed.metric_name == "Failed" && one([for query in aws_cloudwatch_metric_alarm.no_workers.metric_query : query.expression if query.return_data == true]) == "IF(workers < 1, backlog, 0)" && aws_cloudwatch_metric_alarm.silent.treat_missing_data == "breaching"
    error_message = "Alarms for tasks that wait, tasks that fail, no workers, and silence."
  }

  assert {
    condition     = aws_cloudwatch_log_group.server.retention_in_days == 30 && aws_cloudwatch_log_group.worker.retention_in_days == 30
    error_message = "Logs are kept for 30 days."
  }

  assert {
    condition     = length(jsondecode(aws_cloudwatch_dashboard.this[0].dashboard_body).widgets) == 8
    error_message = "The dashboard has seven graphs and a log."
  }
}

run "stop_times" {
  assert {
    condition     = jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].stopTimeout == 120 && contains(jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_DRAIN_TIMEOUT", value = "90" })
    error_message = "A worker has time to drain (90 s), and a script for its grace (10 s), before Fargate kills (120 s)."
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_ECS_PROTECTION_MINUTES", value = "60" })
    error_message = "Working workers are protected."
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].environment, { name = "SCRIPT_RUNNER_LEASE_SECONDS", value = "60" })
    error_message = "Scripts run on while Redis fails over."
  }
}
