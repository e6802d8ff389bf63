# What others need: where it is, what it is called, and which roles and secrets it uses.

output "url" {
  description = "Where the API is."
  value       = "https://${local.domain_name}"
}

output "load_balancer_dns_name" {
  description = "What a name of yours points at, where Route 53 does not hold it."
  value       = aws_lb.this.dns_name
}

output "load_balancer_arn" {
  description = "For a WAF, or a further listener rule."
  value       = aws_lb.this.arn
}

output "cluster_name" {
  description = "The ECS cluster."
  value       = local.cluster_name
}

output "server_service_name" {
  description = "The ECS service of the servers."
  value       = aws_ecs_service.server.name
}

output "worker_service_name" {
  description = "The ECS service of the workers."
  value       = aws_ecs_service.worker.name
}

output "server_task_role_arn" {
  description = "What the servers may do."
  value       = aws_iam_role.server.arn
}

output "worker_task_role_arn" {
  description = "What the workers, and so your script, may do."
  value       = aws_iam_role.worker.arn
}

output "execution_role_arn" {
  description = "What ECS may do to start them."
  value       = local.execution_role_arn
}

output "artifact_bucket" {
  description = "The bucket with rows and files."
  value       = aws_s3_bucket.artifacts.id
}

output "artifact_bucket_arn" {
  description = "The same, as policies name it."
  value       = aws_s3_bucket.artifacts.arn
}

output "redis_url" {
  description = "Redis, without its password."
  value       = local.redis_url
}

output "redis_password_secret_arn" {
  description = "The secret with the password of Redis."
  value       = local.redis_password_arn
}

output "log_group_names" {
  description = "Where servers and workers log."
  value       = { server = aws_cloudwatch_log_group.server.name, worker = aws_cloudwatch_log_group.worker.name }
}

output "security_group_ids" {
  description = "The groups of the load balancer, the servers and the workers."
  value = {
    load_balancer = aws_security_group.load_balancer.id
    server        = aws_security_group.server.id
    worker        = aws_security_group.worker.id
  }
}

output "vpc_id" {
  description = "The VPC, made or given."
  value       = local.vpc_id
}

output "metric_namespace" {
  description = "The CloudWatch namespace with Queued, Running, Backlog, OldestQueuedSeconds, Workers and Failed."
  value       = local.metric_namespace
}

output "nat_addresses" {
  description = "Where calls of scripts come from, for allow lists; empty with a VPC of yours."
  value       = aws_eip.nat[*].public_ip
}
