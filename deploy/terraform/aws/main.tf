# What the other files share: names, addresses and what both containers are told.

data "aws_region" "current" {}

data "aws_partition" "current" {}

data "aws_caller_identity" "current" {}

locals {
  name       = trim(substr(replace(lower(var.stack_name), "/[^a-z0-9]+/", "-"), 0, 24), "-")
  tags       = merge({ "script-runner" = local.name }, var.tags)
  region     = data.aws_region.current.id
  partition  = data.aws_partition.current.partition
  account_id = data.aws_caller_identity.current.account_id
  arn_begin  = "arn:${local.partition}:%s:${local.region}:${local.account_id}:%s"

  image = var.image_tag == null ? var.image : "${var.image}:${var.image_tag}"

  server_port  = 8000
  metrics_port = 9090

  worker_min_count = var.worker_count == null ? var.worker_min_count : var.worker_count
  worker_max_count = var.worker_count == null ? var.worker_max_count : var.worker_count

  environment = {
    AWS_REGION                   = local.region
    SCRIPT_RUNNER_REDIS_URL      = local.redis_url
    SCRIPT_RUNNER_REDIS_REPLICAS = local.awaited_replicas
    SCRIPT_RUNNER_STORE          = "s3://${aws_s3_bucket.artifacts.id}/${local.artifact_prefix}"
    SCRIPT_RUNNER_LOG_FORMAT     = "json"
  }

  optional_environment = {
    SCRIPT_RUNNER_REDIS_USERNAME = var.create_redis ? null : var.redis_username
  }

  secrets = merge(var.secrets, { SCRIPT_RUNNER_REDIS_PASSWORD = local.redis_password_arn })

  container = {
    image                  = local.image
    essential              = true
    readonlyRootFilesystem = var.readonly_root_filesystem
    linuxParameters        = { initProcessEnabled = true }
    mountPoints            = var.readonly_root_filesystem ? [{ sourceVolume = "tmp", containerPath = "/tmp", readOnly = false }] : []
    repositoryCredentials  = var.image_pull_secret_arn == null ? null : { credentialsParameter = var.image_pull_secret_arn }
    secrets                = [for name, arn in local.secrets : { name = name, valueFrom = arn }]
  }
}

resource "aws_ecs_cluster" "this" {
  count = local.makes_cluster ? 1 : 0

  name = local.name
  tags = local.tags

  setting {
    name  = "containerInsights"
    value = var.container_insights ? "enabled" : "disabled"
  }
}

resource "aws_ecs_cluster_capacity_providers" "this" {
  count = local.makes_cluster ? 1 : 0

  cluster_name       = aws_ecs_cluster.this[0].name
  capacity_providers = ["FARGATE", "FARGATE_SPOT"]
}

locals {
  makes_cluster = var.create_ecs_cluster != null ? var.create_ecs_cluster : var.ecs_cluster_id == null
  cluster_id    = local.makes_cluster ? aws_ecs_cluster.this[0].arn : var.ecs_cluster_id
  cluster_name  = element(split("/", local.cluster_id), -1)
}

# The original took its region from a variable; here the provider has it, and the two must agree.
resource "terraform_data" "region" {
  input = local.region

  lifecycle {
    precondition {
      condition     = var.aws_region == null || var.aws_region == local.region
      error_message = "aws_region is ${coalesce(var.aws_region, "-")}, but the AWS provider is set to ${local.region}: configure the provider with region = var.aws_region."
    }
  }
}
