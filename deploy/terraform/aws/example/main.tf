# A whole installation in a VPC of its own: an image in ECR, the module, and who is told when something is wrong.

terraform {
  required_version = ">= 1.9.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.80.0, < 7.0.0"
    }
  }

  # Terraform's state holds the password of Redis: keep it in an encrypted, private place, as
  # backend "s3" { bucket = "my-terraform-state", key = "script-runner", region = "eu-central-1", encrypt = true }
}

provider "aws" {
  region = var.aws_region
}

module "script_runner" {
  source = "../"

  aws_region = var.aws_region
  stack_name = "script-runner"

  image     = aws_ecr_repository.this.repository_url
  image_tag = var.image_tag

  dns_zone_id   = var.dns_zone_id
  dns_subdomain = var.dns_subdomain

  auth_provider  = var.auth_provider
  auth0_domain   = var.auth0_domain
  auth0_audience = var.auth0_audience

  # what one script needs, and how many may run at once in all
  worker_cpu                   = 1024
  worker_memory                = 4096
  worker_ephemeral_storage_gib = 40
  worker_max_count             = 8

  environment_variables = { TZ = "UTC" }
  alarm_topic_arns      = [aws_sns_topic.alarms.arn]
}

resource "aws_ecr_repository" "this" {
  name                 = "script-runner"
  image_tag_mutability = "IMMUTABLE" # a tag is one image for ever: the tag before is the way back

  image_scanning_configuration {
    scan_on_push = true
  }
}

resource "aws_sns_topic" "alarms" {
  name = "script-runner-alarms"
}

resource "aws_sns_topic_subscription" "mail" {
  count = var.alarm_email == null ? 0 : 1

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = var.alarm_email
}

variable "aws_region" {
  description = "Where."
  type        = string
  default     = "eu-central-1"
}

variable "image_tag" {
  description = "Which image."
  type        = string
}

variable "dns_zone_id" {
  description = "The Route 53 zone."
  type        = string
}

variable "dns_subdomain" {
  description = "The name below it."
  type        = string
  default     = "scripts"
}

variable "auth_provider" {
  description = "Who may ask: see docs/auth.md."
  type        = string
}

variable "auth0_domain" {
  description = "Your tenant, for auth0."
  type        = string
  default     = null
}

variable "auth0_audience" {
  description = "The identifier of this API at Auth0."
  type        = string
  default     = null
}

variable "alarm_email" {
  description = "Who gets the alarms."
  type        = string
  default     = null
}

output "url" {
  description = "Where the API is."
  value       = module.script_runner.url
}

output "repository_url" {
  description = "Where the image goes."
  value       = aws_ecr_repository.this.repository_url
}
