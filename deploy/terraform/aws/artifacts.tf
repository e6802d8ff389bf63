# Rows and files of tasks: a bucket that is encrypted, closed to the public and to plain HTTP, and empties itself.

locals {
  artifact_prefix = "artifacts"
}

resource "aws_s3_bucket" "artifacts" {
  bucket_prefix = "${local.name}-"
  force_destroy = !var.deletion_protection
  tags          = local.tags
}

resource "aws_s3_bucket_public_access_block" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    bucket_key_enabled = var.kms_key_arn != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == null ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  # the runner removes files with their task; this takes what was left behind
  rule {
    id     = "expire"
    status = "Enabled"

    filter {
      prefix = "${local.artifact_prefix}/"
    }

    expiration {
      days = var.artifact_expiry_days
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}

resource "aws_s3_bucket_policy" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "OnlyByTls"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.artifacts.arn, "${aws_s3_bucket.artifacts.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })

  depends_on = [aws_s3_bucket_public_access_block.artifacts]
}

# a page in a browser follows the redirection only where the bucket lets it; the address itself is the permission
resource "aws_s3_bucket_cors_configuration" "artifacts" {
  count = var.redirect_downloads ? 1 : 0

  bucket = aws_s3_bucket.artifacts.id

  cors_rule {
    allowed_methods = ["GET", "HEAD"]
    allowed_origins = ["*"]
    allowed_headers = ["Range", "If-Range", "If-None-Match", "Authorization"]
    expose_headers  = ["ETag", "Content-Range", "Content-Length"]
    max_age_seconds = 3600
  }
}
