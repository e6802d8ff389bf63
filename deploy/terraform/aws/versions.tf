# What this module needs. Checked with Terraform 1.11.4 and the AWS provider 5.100.0 (docs/deploy/aws.md).

terraform {
  required_version = ">= 1.9.0" # a validation looks at another variable

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.80.0, < 7.0.0" # Valkey on ElastiCache
    }
  }
}
