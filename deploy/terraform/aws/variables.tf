# What may be set. Names that the original's module had keep their names; docs/deploy/aws.md lists which are new.

variable "stack_name" {
  description = "The name of this installation; every resource is called after it, in lower case and cut to 24 characters."
  type        = string
  default     = "script-runner"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z]", var.stack_name))
    error_message = "stack_name begins with a letter."
  }
}

variable "aws_region" {
  description = "The region that the AWS provider must be set to; null takes whatever it is set to."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags for every resource that takes some."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "kms_key_arn" {
  description = "A customer-managed key for artifacts, Redis and the secret of Redis; null takes the keys of AWS."
  type        = string
  default     = null
}

variable "deletion_protection" {
  description = "Whether the load balancer refuses to be destroyed, the bucket with files in it too, and Redis leaves a last snapshot."
  type        = bool
  default     = true
  nullable    = false
}

# The image

variable "image" {
  description = "The image with your script, without its tag: 123456789012.dkr.ecr.eu-central-1.amazonaws.com/my-script. A digest (name@sha256:…) may stand here in place of image_tag."
  type        = string

  validation {
    condition     = can(regex("^[^\\s]+$", var.image))
    error_message = "image is the name of an image."
  }
}

variable "image_tag" {
  description = "The tag of the image. Take one that never moves: a rollback is the tag before."
  type        = string
  default     = null

  validation {
    condition     = (var.image_tag == null) == strcontains(var.image, "@sha256:")
    error_message = "Give image_tag, or an image with a digest (name@sha256:…), and not both."
  }
}

variable "image_pull_secret_arn" {
  description = "A secret {\"username\": …, \"password\": …} for a registry other than ECR."
  type        = string
  default     = null
}

variable "cpu_architecture" {
  description = "What the image was built for: X86_64 or ARM64 (about a fifth cheaper)."
  type        = string
  default     = "X86_64"
  nullable    = false

  validation {
    condition     = contains(["X86_64", "ARM64"], var.cpu_architecture)
    error_message = "cpu_architecture is X86_64 or ARM64."
  }
}

variable "environment_variables" {
  description = "Further variables for servers and workers; your script sees those that are no setting of the runner. Nothing secret: they stand in the task definition."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition = length(setintersection(keys(var.environment_variables), [
      "AUTH_PROVIDER", "AUTH0_DOMAIN", "AUTH0_API_AUDIENCE", "AUTH0_CLIENT_ID", "AWS_REGION",
      "SCRIPT_RUNNER_REDIS_URL", "SCRIPT_RUNNER_REDIS_USERNAME", "SCRIPT_RUNNER_REDIS_REPLICAS",
      "SCRIPT_RUNNER_STORE", "SCRIPT_RUNNER_HOST", "SCRIPT_RUNNER_PORT", "SCRIPT_RUNNER_METRICS",
      "SCRIPT_RUNNER_LOG_FORMAT", "SCRIPT_RUNNER_REPORT_SECONDS", "SCRIPT_RUNNER_CONCURRENCY",
      "SCRIPT_RUNNER_DRAIN_TIMEOUT", "SCRIPT_RUNNER_LEASE_SECONDS", "SCRIPT_RUNNER_ECS_PROTECTION_MINUTES", "SCRIPT_RUNNER_REDIRECT_DOWNLOADS",
    ])) == 0
    error_message = "The module sets these itself, from variables of its own: AUTH_*, AWS_REGION, SCRIPT_RUNNER_REDIS_*, _STORE, _HOST, _PORT, _METRICS, _LOG_FORMAT, _REPORT_SECONDS, _CONCURRENCY, _DRAIN_TIMEOUT, _LEASE_SECONDS, _ECS_PROTECTION_MINUTES, _REDIRECT_DOWNLOADS."
  }

  validation {
    condition     = length(setintersection(keys(var.environment_variables), ["SCRIPT_RUNNER_REDIS_PASSWORD", "SCRIPT_RUNNER_STORE_SECRET"])) == 0
    error_message = "A secret goes into `secrets`, by its ARN."
  }
}

variable "secrets" {
  description = "Further variables from Secrets Manager or the Parameter Store: name = ARN, for a key in a JSON secret ARN:key::."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for arn in values(var.secrets) : can(regex("^arn:[^:]+:(secretsmanager|ssm):", arn))])
    error_message = "A secret is named by the ARN of a secret in Secrets Manager or of a parameter in the Parameter Store."
  }
}

variable "readonly_root_filesystem" {
  description = "Mount the image read-only, with /tmp on the ephemeral storage. The image must declare VOLUME /tmp with mode 1777: Fargate takes the rights of a volume from there."
  type        = bool
  default     = false
  nullable    = false
}

# Who may ask

variable "auth_provider" {
  description = "AUTH_PROVIDER: none, auth0, or a word of yours (docs/auth.md). There is no default: none opens the API to whoever reaches it."
  type        = string

  validation {
    condition     = length(var.auth_provider) > 0
    error_message = "auth_provider is a word: none, auth0, or one of yours."
  }
}

variable "auth0_domain" {
  description = "AUTH0_DOMAIN, for auth_provider = \"auth0\"."
  type        = string
  default     = null

  validation {
    condition     = var.auth_provider != "auth0" || (var.auth0_domain != null && var.auth0_audience != null)
    error_message = "auth_provider = \"auth0\" needs auth0_domain and auth0_audience."
  }
}

variable "auth0_audience" {
  description = "AUTH0_API_AUDIENCE, for auth_provider = \"auth0\"."
  type        = string
  default     = null
}

variable "auth0_client_id" {
  description = "AUTH0_CLIENT_ID: kept for a page that signs people in; decides nothing."
  type        = string
  default     = null
}

# The network

variable "vpc_id" {
  description = "Your VPC, together with its subnets; left out, the module makes one."
  type        = string
  default     = null

  validation {
    condition     = var.vpc_id == null || length(var.vpc_public_subnet_ids) > 0
    error_message = "With vpc_id give vpc_public_subnet_ids, too (and vpc_private_subnet_ids, vpc_database_subnet_ids)."
  }
}

variable "vpc_cidr" {
  description = "The address block of the VPC that the module makes, /16 to /20. With a VPC of yours it is not needed and not looked at."
  type        = string
  default     = "10.42.0.0/16"
  nullable    = false

  validation {
    condition     = can(cidrsubnet(var.vpc_cidr, 8, 0))
    error_message = "vpc_cidr is an IPv4 block, as 10.42.0.0/16."
  }
}

variable "vpc_public_subnet_ids" {
  description = "Subnets of your VPC for the load balancer, in two zones or more. With load_balancer_internal these may be private ones."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = length(var.vpc_public_subnet_ids) != 1
    error_message = "A load balancer needs subnets in two zones."
  }
}

variable "vpc_private_subnet_ids" {
  description = "Subnets of your VPC for servers and workers, with a way out (NAT, or endpoints for ECR, S3, logs and Secrets Manager). Left out, tasks are put into the public subnets with public addresses, as the original did; nothing can reach them but the load balancer."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "vpc_database_subnet_ids" {
  description = "Subnets of your VPC for Redis. Left out: the private ones."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = length(var.vpc_public_subnet_ids) == 0 || !var.create_redis || length(concat(var.vpc_private_subnet_ids, var.vpc_database_subnet_ids)) > 0
    error_message = "Redis does not go into public subnets: give vpc_database_subnet_ids or vpc_private_subnet_ids."
  }
}

variable "zone_count" {
  description = "In how many zones the module's own VPC has subnets."
  type        = number
  default     = 2
  nullable    = false

  validation {
    condition     = contains([2, 3], var.zone_count)
    error_message = "zone_count is 2 or 3."
  }
}

variable "nat_gateway_per_zone" {
  description = "One NAT gateway in each zone instead of one in all: a zone that fails takes no other with it, for twice or three times the price."
  type        = bool
  default     = false
  nullable    = false
}

variable "worker_egress_cidrs" {
  description = "Where scripts may connect to. Narrowed, it must still reach ECR, S3, CloudWatch Logs and Secrets Manager."
  type        = list(string)
  default     = ["0.0.0.0/0"]
  nullable    = false
}

# The front door

variable "dns_zone_id" {
  description = "The Route 53 zone in which the name and the certificate's proof are written."
  type        = string
  default     = null
}

variable "dns_subdomain" {
  description = "The name below that zone: scripts for scripts.example.org."
  type        = string
  default     = null

  validation {
    condition     = (var.dns_subdomain == null) != (var.certificate_arn == null)
    error_message = "Give dns_subdomain and dns_zone_id, or certificate_arn and domain_name: HTTPS needs a certificate."
  }

  validation {
    condition     = var.dns_subdomain == null || var.dns_zone_id != null
    error_message = "dns_subdomain needs dns_zone_id."
  }
}

variable "certificate_arn" {
  description = "A certificate of yours (ACM, this region) where the name is not in Route 53."
  type        = string
  default     = null
}

variable "domain_name" {
  description = "The name in certificate_arn; you point it at the output load_balancer_dns_name."
  type        = string
  default     = null

  validation {
    condition     = var.certificate_arn == null || var.domain_name != null
    error_message = "certificate_arn needs domain_name."
  }
}

variable "allowed_cidrs" {
  description = "Who reaches the load balancer."
  type        = list(string)
  default     = ["0.0.0.0/0"]
  nullable    = false
}

variable "load_balancer_internal" {
  description = "A load balancer with private addresses only, for networks that reach the VPC."
  type        = bool
  default     = false
  nullable    = false
}

variable "access_logs_bucket" {
  description = "A bucket that takes the access logs of load balancers; null writes none."
  type        = string
  default     = null
}

# The cluster and its roles

variable "ecs_cluster_id" {
  description = "Your ECS cluster (its ARN); left out, the module makes one."
  type        = string
  default     = null
}

variable "create_ecs_cluster" {
  description = "Say false when ecs_cluster_id is a resource of the same apply, so that it is not known before; null: whether it was left out."
  type        = bool
  default     = null
}

variable "ecs_task_execution_role_arn" {
  description = "Your execution role; left out, the module makes one. What it needs is added to it."
  type        = string
  default     = null
}

variable "ecs_task_execution_role_name" {
  description = "The name of that role; left out: the last part of its ARN."
  type        = string
  default     = null
}

variable "create_ecs_task_execution_role" {
  description = "As create_ecs_cluster, for the role."
  type        = bool
  default     = null
}

variable "worker_policy_arns" {
  description = "Further policies for the role of workers: what your script may do in AWS. name = ARN."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "container_insights" {
  description = "CloudWatch Container Insights on the module's own cluster; costs per metric."
  type        = bool
  default     = false
  nullable    = false
}

# Servers

variable "server_count" {
  description = "How many servers: two let a zone fail."
  type        = number
  default     = 2
  nullable    = false

  validation {
    condition     = var.server_count >= 1 && floor(var.server_count) == var.server_count
    error_message = "server_count is a whole number, 1 or more."
  }
}

variable "server_cpu" {
  description = "CPU units of a server: 1024 is one core."
  type        = number
  default     = 256
  nullable    = false
}

variable "server_memory" {
  description = "Memory of a server in MiB; Fargate takes certain pairs with server_cpu only."
  type        = number
  default     = 512
  nullable    = false

  validation {
    condition = contains(lookup({
      256   = [512, 1024, 2048]
      512   = range(1024, 4097, 1024)
      1024  = range(2048, 8193, 1024)
      2048  = range(4096, 16385, 1024)
      4096  = range(8192, 30721, 1024)
      8192  = range(16384, 61441, 4096)
      16384 = range(32768, 122881, 8192)
    }, var.server_cpu, []), var.server_memory)
    error_message = "Fargate has no such pair of server_cpu and server_memory: 256 with 512, 1024, 2048; 512 with 1024 to 4096; 1024 with 2048 to 8192; …"
  }
}

variable "server_command" {
  description = "What a server's container runs."
  type        = list(string)
  default     = ["script-runner", "serve"]
  nullable    = false
}

variable "redirect_downloads" {
  description = "Send clients to S3 itself for files of 1 MiB and more, by addresses that are valid for five minutes."
  type        = bool
  default     = false
  nullable    = false
}

# Workers

variable "worker_count" {
  description = "As in the original: that many workers, always. Left out, their number follows the work, between worker_min_count and worker_max_count."
  type        = number
  default     = null
}

variable "worker_min_count" {
  description = "The fewest workers. 0: nothing runs and costs while nothing waits, and the first task waits for a start of Fargate."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.worker_min_count >= 0 && var.worker_min_count <= var.worker_max_count
    error_message = "worker_min_count is 0 or more, and not above worker_max_count."
  }
}

variable "worker_max_count" {
  description = "The most workers."
  type        = number
  default     = 4
  nullable    = false

  validation {
    condition     = var.worker_max_count >= 1 && var.worker_max_count <= 1000
    error_message = "worker_max_count is 1 to 1000."
  }
}

variable "worker_concurrency" {
  description = "How many scripts a worker runs at once; so many tasks are one worker's share of the backlog."
  type        = number
  default     = 1
  nullable    = false

  validation {
    condition     = var.worker_concurrency >= 1 && floor(var.worker_concurrency) == var.worker_concurrency
    error_message = "worker_concurrency is a whole number, 1 or more."
  }
}

variable "worker_idle_minutes" {
  description = "For how many minutes in a row fewer workers must do before there are fewer."
  type        = number
  default     = 10
  nullable    = false

  validation {
    condition     = var.worker_idle_minutes >= 2 && var.worker_idle_minutes <= 60
    error_message = "worker_idle_minutes is 2 to 60."
  }
}

variable "worker_cpu" {
  description = "CPU units of a worker: 1024 is one core."
  type        = number
  default     = 1024
  nullable    = false
}

variable "worker_memory" {
  description = "Memory of a worker in MiB, for all scripts that it runs at once; Fargate takes certain pairs with worker_cpu only."
  type        = number
  default     = 2048
  nullable    = false

  validation {
    condition = contains(lookup({
      256   = [512, 1024, 2048]
      512   = range(1024, 4097, 1024)
      1024  = range(2048, 8193, 1024)
      2048  = range(4096, 16385, 1024)
      4096  = range(8192, 30721, 1024)
      8192  = range(16384, 61441, 4096)
      16384 = range(32768, 122881, 8192)
    }, var.worker_cpu, []), var.worker_memory)
    error_message = "Fargate has no such pair of worker_cpu and worker_memory: 256 with 512, 1024, 2048; 512 with 1024 to 4096; 1024 with 2048 to 8192; …"
  }
}

variable "worker_ephemeral_storage_gib" {
  description = "Disk of a worker for run folders, in GiB: 20 (free of charge) to 200."
  type        = number
  default     = 20
  nullable    = false

  validation {
    condition     = var.worker_ephemeral_storage_gib >= 20 && var.worker_ephemeral_storage_gib <= 200
    error_message = "worker_ephemeral_storage_gib is 20 to 200."
  }
}

variable "worker_drain_seconds" {
  description = "How long a worker that is stopped waits for its scripts. Fargate kills after 120 s, and the grace of a script must fit in, too."
  type        = number
  default     = 90
  nullable    = false

  validation {
    condition     = var.worker_drain_seconds >= 0 && var.worker_drain_seconds <= 105
    error_message = "worker_drain_seconds is 0 to 105."
  }
}

variable "worker_lease_seconds" {
  description = "After how long a worker that fell silent is given up. While Redis is away for less than 85 % of it, as in a failover, scripts run on."
  type        = number
  default     = 60
  nullable    = false

  validation {
    condition     = var.worker_lease_seconds >= 10 && var.worker_lease_seconds <= 3600
    error_message = "worker_lease_seconds is 10 to 3600."
  }
}

variable "worker_protection_minutes" {
  description = "For how long at a time a working worker is protected from scale-in and deployments; 0 for never."
  type        = number
  default     = 60
  nullable    = false

  validation {
    condition     = var.worker_protection_minutes >= 0 && var.worker_protection_minutes <= 2880
    error_message = "worker_protection_minutes is 0 to 2880."
  }
}

variable "worker_spot" {
  description = "Workers beyond worker_on_demand_base run on Fargate Spot: cheaper, and stopped with two minutes' notice, which cuts off longer scripts (on_worker_lost says what then)."
  type        = bool
  default     = false
  nullable    = false
}

variable "worker_on_demand_base" {
  description = "With worker_spot: how many workers are on demand all the same."
  type        = number
  default     = 1
  nullable    = false
}

variable "worker_command" {
  description = "What a worker's container runs."
  type        = list(string)
  default     = ["script-runner", "worker"]
  nullable    = false
}

variable "worker_health_check" {
  description = "The command that tells ECS that a worker lives; an empty list for none. It needs python3 in the image."
  type        = list(string)
  default     = ["CMD", "python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/health', timeout=4)"]
  nullable    = false
}

# Redis

variable "create_redis" {
  description = "Whether the module makes a Valkey on ElastiCache; false takes redis_url."
  type        = bool
  default     = true
  nullable    = false
}

variable "redis_url" {
  description = "Your own Redis or Valkey, without name and password: rediss://host:6379/0."
  type        = string
  default     = null

  validation {
    condition     = var.create_redis == (var.redis_url == null)
    error_message = "redis_url goes with create_redis = false."
  }

  validation {
    condition     = var.redis_url == null || can(regex("^rediss://[^@/]+(/[0-9]+)?$", var.redis_url))
    error_message = "redis_url is rediss://host:port/db: with TLS, and without a password, which goes into redis_password_secret_arn."
  }
}

variable "redis_username" {
  description = "The user of your own Redis, if not the default one."
  type        = string
  default     = null
}

variable "redis_password_secret_arn" {
  description = "A secret whose text is the password of Redis. For the module's own Valkey, left out, one is made up (16 to 128 letters and digits if you give one). Either way it also stands in the state of Terraform: the provider has no other way to set it."
  type        = string
  default     = null

  validation {
    condition     = var.create_redis || var.redis_password_secret_arn != null
    error_message = "create_redis = false needs redis_password_secret_arn: a Redis without a password is not used."
  }
}

variable "generate_redis_password" {
  description = "Say false when redis_password_secret_arn is a resource of the same apply; null: whether it was left out."
  type        = bool
  default     = null
}

variable "redis_port" {
  description = "The port of Redis."
  type        = number
  default     = 6379
  nullable    = false
}

variable "redis_node_type" {
  description = "The size of a Valkey node. It holds records and log tails, no files."
  type        = string
  default     = "cache.t4g.small"
  nullable    = false
}

variable "redis_engine_version" {
  description = "The version of Valkey."
  type        = string
  default     = "8.0"
  nullable    = false

  validation {
    condition     = can(regex("^(7\\.2|8\\.[0-9]+)$", var.redis_engine_version))
    error_message = "redis_engine_version is 7.2 or 8.x."
  }
}

variable "redis_replica_count" {
  description = "Replicas in other zones, with automatic failover. A task is acknowledged when one of them has it. 0: one node alone; its end is the end of every record."
  type        = number
  default     = 1
  nullable    = false

  validation {
    condition     = var.redis_replica_count >= 0 && var.redis_replica_count <= 5
    error_message = "redis_replica_count is 0 to 5."
  }
}

variable "redis_snapshot_days" {
  description = "For how many days daily snapshots are kept; 0 for none."
  type        = number
  default     = 7
  nullable    = false
}

# Artifacts

variable "artifact_expiry_days" {
  description = "After how many days S3 removes what the runner should have removed before (retention in your configuration). Longer than your longest retention."
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition     = var.artifact_expiry_days >= 2
    error_message = "artifact_expiry_days is 2 or more: the runner keeps a finished task for a day, unless you say otherwise."
  }
}

# Being told

variable "log_retention_days" {
  description = "How long CloudWatch keeps the logs."
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "CloudWatch keeps logs for 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827 … days."
  }
}

variable "alarm_topic_arns" {
  description = "SNS topics that hear of alarms, and of their end. Without one, alarms only show in CloudWatch."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "oldest_queued_alarm_seconds" {
  description = "How long the oldest task may wait for a start."
  type        = number
  default     = 900
  nullable    = false
}

variable "failed_alarm_count" {
  description = "How many tasks may fail, run out of time or be lost in five minutes."
  type        = number
  default     = 5
  nullable    = false
}

variable "dashboard" {
  description = "Whether to make a CloudWatch dashboard."
  type        = bool
  default     = true
  nullable    = false
}
