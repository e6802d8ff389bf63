# The module within a configuration that makes what it is given in the same apply, so that nothing of it is known in the plan.

terraform {
  required_providers {
    aws = {
      source = "hashicorp/aws"
    }
  }
}

resource "aws_vpc" "this" {
  cidr_block = "10.0.0.0/16"
}

resource "aws_subnet" "this" {
  count = 6

  vpc_id     = aws_vpc.this.id
  cidr_block = cidrsubnet("10.0.0.0/16", 8, count.index)
}

resource "aws_ecs_cluster" "this" {
  name = "lab"
}

resource "aws_iam_role" "execution" {
  name               = "lab-execution"
  assume_role_policy = "{}"
}

resource "aws_iam_policy" "lims" {
  name   = "lims"
  policy = "{}"
}

resource "aws_route53_zone" "this" {
  name = "example.org"
}

resource "aws_secretsmanager_secret" "this" {
  for_each = toset(["redis", "lims"])

  name = each.key
}

resource "aws_kms_key" "this" {
  deletion_window_in_days = 7
}

resource "aws_s3_bucket" "logs" {
  bucket = "lab-logs"
}

resource "aws_sns_topic" "this" {
  name = "lab-alarms"
}

resource "aws_ecr_repository" "this" {
  name = "lab/script"
}

module "script_runner" {
  source = "../../"

  image         = aws_ecr_repository.this.repository_url
  image_tag     = "1"
  auth_provider = "none"

  vpc_id                  = aws_vpc.this.id
  vpc_public_subnet_ids   = slice(aws_subnet.this[*].id, 0, 2)
  vpc_private_subnet_ids  = slice(aws_subnet.this[*].id, 2, 4)
  vpc_database_subnet_ids = slice(aws_subnet.this[*].id, 4, 6)

  dns_zone_id   = aws_route53_zone.this.zone_id
  dns_subdomain = "scripts"

  ecs_cluster_id                 = aws_ecs_cluster.this.id
  create_ecs_cluster             = false
  ecs_task_execution_role_arn    = aws_iam_role.execution.arn
  create_ecs_task_execution_role = false

  redis_password_secret_arn = aws_secretsmanager_secret.this["redis"].arn
  generate_redis_password   = false

  secrets            = { LIMS_TOKEN = aws_secretsmanager_secret.this["lims"].arn }
  worker_policy_arns = { lims = aws_iam_policy.lims.arn }
  kms_key_arn        = aws_kms_key.this.arn
  access_logs_bucket = aws_s3_bucket.logs.id
  alarm_topic_arns   = [aws_sns_topic.this.arn]
}

output "url" {
  value = module.script_runner.url
}
