# The ledger: Valkey on ElastiCache with TLS, a password, encryption at rest, and no way to it but from servers and workers.

locals {
  makes_password     = var.create_redis && (var.generate_redis_password != null ? var.generate_redis_password : var.redis_password_secret_arn == null)
  redis_password_arn = local.makes_password ? aws_secretsmanager_secret.redis[0].arn : var.redis_password_secret_arn
  redis_url          = var.create_redis ? "rediss://${aws_elasticache_replication_group.redis[0].primary_endpoint_address}:${var.redis_port}/0" : var.redis_url
  awaited_replicas   = var.create_redis && var.redis_replica_count > 0 ? "1" : "0"
  # ElastiCache numbers the nodes of a group, and CloudWatch knows them one by one
  redis_node_ids = var.create_redis ? [for number in range(1 + var.redis_replica_count) : format("%s-%03d", aws_elasticache_replication_group.redis[0].id, number + 1)] : []
  redis_family   = startswith(var.redis_engine_version, "7") ? "valkey7" : "valkey8"
}

resource "aws_security_group" "redis" {
  count = var.create_redis ? 1 : 0

  name_prefix = "${local.name}-redis-"
  description = "Redis of ${local.name}: servers and workers come in, nothing goes out"
  vpc_id      = local.vpc_id
  tags        = merge(local.tags, { Name = "${local.name}-redis" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "redis" {
  for_each = var.create_redis ? {
    server = aws_security_group.server.id
    worker = aws_security_group.worker.id
  } : {}

  security_group_id            = aws_security_group.redis[0].id
  description                  = "from ${each.key}s"
  ip_protocol                  = "tcp"
  from_port                    = var.redis_port
  to_port                      = var.redis_port
  referenced_security_group_id = each.value
  tags                         = local.tags
}

resource "aws_elasticache_subnet_group" "redis" {
  count = var.create_redis ? 1 : 0

  name       = "${local.name}-redis"
  subnet_ids = local.database_subnet_ids
  tags       = local.tags
}

resource "aws_elasticache_parameter_group" "redis" {
  count = var.create_redis ? 1 : 0

  name        = "${local.name}-${local.redis_family}"
  family      = local.redis_family
  description = "Nothing is evicted: a task that was taken is kept"
  tags        = local.tags

  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_elasticache_replication_group" "redis" {
  count = var.create_redis ? 1 : 0

  replication_group_id = "${local.name}-redis"
  description          = "The queue and the records of ${local.name}"
  engine               = "valkey"
  engine_version       = var.redis_engine_version
  node_type            = var.redis_node_type
  port                 = var.redis_port
  parameter_group_name = aws_elasticache_parameter_group.redis[0].name

  num_cache_clusters         = 1 + var.redis_replica_count
  automatic_failover_enabled = var.redis_replica_count > 0
  multi_az_enabled           = var.redis_replica_count > 0

  subnet_group_name  = aws_elasticache_subnet_group.redis[0].name
  security_group_ids = [aws_security_group.redis[0].id]

  transit_encryption_enabled = true
  transit_encryption_mode    = "required"
  at_rest_encryption_enabled = true
  kms_key_id                 = var.kms_key_arn
  auth_token                 = local.makes_password ? aws_secretsmanager_secret_version.redis[0].secret_string : data.aws_secretsmanager_secret_version.redis[0].secret_string
  auth_token_update_strategy = "ROTATE"

  snapshot_retention_limit   = var.redis_snapshot_days
  snapshot_window            = "03:00-04:00"
  maintenance_window         = "sun:04:30-sun:05:30"
  final_snapshot_identifier  = var.deletion_protection ? "${local.name}-redis-last" : null
  auto_minor_version_upgrade = true
  apply_immediately          = false
  tags                       = local.tags
}

# The password. It also stands in Terraform's state, as an argument of the replication group: keep the state encrypted.

data "aws_secretsmanager_random_password" "redis" {
  count = local.makes_password ? 1 : 0

  password_length     = 64
  exclude_punctuation = true
}

resource "aws_secretsmanager_secret" "redis" {
  count = local.makes_password ? 1 : 0

  name_prefix             = "${local.name}-redis-"
  description             = "The password (AUTH token) of Redis of ${local.name}"
  kms_key_id              = var.kms_key_arn
  recovery_window_in_days = 7
  tags                    = local.tags
}

resource "aws_secretsmanager_secret_version" "redis" {
  count = local.makes_password ? 1 : 0

  secret_id     = aws_secretsmanager_secret.redis[0].id
  secret_string = data.aws_secretsmanager_random_password.redis[0].random_password

  lifecycle {
    ignore_changes = [secret_string] # the data source makes up another one at each plan
  }
}

data "aws_secretsmanager_secret_version" "redis" {
  count = var.create_redis && !local.makes_password ? 1 : 0

  secret_id = var.redis_password_secret_arn
}
