# Three roles: ECS itself (pull, log, hand over secrets), servers, workers. Each may do what is named here, to what is named here.

locals {
  makes_execution_role = var.create_ecs_task_execution_role != null ? var.create_ecs_task_execution_role : var.ecs_task_execution_role_arn == null
  execution_role_arn   = local.makes_execution_role ? aws_iam_role.execution[0].arn : var.ecs_task_execution_role_arn
  execution_role_name  = local.makes_execution_role ? aws_iam_role.execution[0].name : var.ecs_task_execution_role_name != null ? var.ecs_task_execution_role_name : element(split("/", var.ecs_task_execution_role_arn), -1)

  trust = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = {
        StringEquals = { "aws:SourceAccount" = local.account_id }
        ArnLike      = { "aws:SourceArn" = format(local.arn_begin, "ecs", "*") }
      }
    }]
  })

  # 123456789012.dkr.ecr.eu-central-1.amazonaws.com/my/script → arn:…:repository/my/script
  ecr            = regexall("^([0-9]{12})\\.dkr\\.ecr(?:-fips)?\\.([a-z0-9-]+)\\.amazonaws\\.com(?:\\.cn)?/([^:@]+)", var.image)
  repository_arn = [for found in local.ecr : "arn:${local.partition}:ecr:${found[1]}:${found[0]}:repository/${found[2]}"]

  given_secret_arns = distinct(concat(values(local.secrets), var.image_pull_secret_arn == null ? [] : [var.image_pull_secret_arn]))
  # arn:partition:secretsmanager:region:account:secret:name:key:stage:version: the last three are no part of the ARN
  secret_arns    = [for arn in local.given_secret_arns : join(":", slice(split(":", arn), 0, 7)) if strcontains(arn, ":secretsmanager:")]
  parameter_arns = [for arn in local.given_secret_arns : arn if strcontains(arn, ":ssm:")]

  execution_statements = concat(
    [{
      Sid      = "Log"
      Effect   = "Allow"
      Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
      Resource = ["${aws_cloudwatch_log_group.server.arn}:*", "${aws_cloudwatch_log_group.worker.arn}:*"]
    }],
    length(local.repository_arn) == 0 ? [] : [
      {
        Sid      = "LogInToRegistry"
        Effect   = "Allow"
        Action   = ["ecr:GetAuthorizationToken"]
        Resource = ["*"] # this action knows no resource (Service Authorization Reference, Amazon ECR)
      },
      {
        Sid      = "Pull"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = local.repository_arn
      },
    ],
    length(local.secret_arns) == 0 ? [] : [{
      Sid      = "ReadSecrets"
      Effect   = "Allow"
      Action   = ["secretsmanager:GetSecretValue"]
      Resource = local.secret_arns
    }],
    length(local.parameter_arns) == 0 ? [] : [{
      Sid      = "ReadParameters"
      Effect   = "Allow"
      Action   = ["ssm:GetParameters"]
      Resource = local.parameter_arns
    }],
    var.kms_key_arn == null ? [] : [{
      Sid      = "DecryptSecrets"
      Effect   = "Allow"
      Action   = ["kms:Decrypt"]
      Resource = [var.kms_key_arn]
    }],
  )

  artifact_statements = concat(
    [
      {
        Sid      = "Files"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = ["${aws_s3_bucket.artifacts.arn}/${local.artifact_prefix}/*"]
      },
      {
        Sid       = "ListFiles"
        Effect    = "Allow"
        Action    = ["s3:ListBucket"]
        Resource  = [aws_s3_bucket.artifacts.arn]
        Condition = { StringLike = { "s3:prefix" = ["${local.artifact_prefix}/*"] } }
      },
    ],
    var.kms_key_arn == null ? [] : [{
      Sid      = "EncryptFiles"
      Effect   = "Allow"
      Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource = [var.kms_key_arn]
    }],
  )
}

resource "aws_iam_role" "execution" {
  count = local.makes_execution_role ? 1 : 0

  name_prefix        = "${local.name}-execution-"
  description        = "ECS starts the tasks of ${local.name}"
  assume_role_policy = local.trust
  tags               = local.tags
}

resource "aws_iam_role_policy" "execution" {
  name   = local.name
  role   = local.execution_role_name
  policy = jsonencode({ Version = "2012-10-17", Statement = local.execution_statements })
}

resource "aws_iam_role" "server" {
  name_prefix        = "${local.name}-server-"
  description        = "The servers of ${local.name}"
  assume_role_policy = local.trust
  tags               = local.tags
}

resource "aws_iam_role_policy" "server" {
  name   = "artifacts"
  role   = aws_iam_role.server.name
  policy = jsonencode({ Version = "2012-10-17", Statement = local.artifact_statements })
}

resource "aws_iam_role" "worker" {
  name_prefix        = "${local.name}-worker-"
  description        = "The workers of ${local.name}, and the scripts in them"
  assume_role_policy = local.trust
  tags               = local.tags
}

resource "aws_iam_role_policy" "worker" {
  name = "artifacts-and-protection"
  role = aws_iam_role.worker.name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(local.artifact_statements, [{
      Sid      = "ProtectItself"
      Effect   = "Allow"
      Action   = ["ecs:GetTaskProtection", "ecs:UpdateTaskProtection"]
      Resource = [format(local.arn_begin, "ecs", "task/${local.cluster_name}/*")] # the ids of tasks are not known before
    }])
  })
}

resource "aws_iam_role_policy_attachment" "worker" {
  for_each = var.worker_policy_arns

  role       = aws_iam_role.worker.name
  policy_arn = each.value
}
