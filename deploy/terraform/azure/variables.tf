# What the caller says. Only five have no default: location, resource_group_name, image, image_tag and auth_provider.

variable "location" {
  description = "Azure region, for example westeurope."
  type        = string
}

variable "resource_group_name" {
  description = "An existing resource group; everything is made in it."
  type        = string
}

variable "stack_name" {
  description = "How everything is called. Letters, digits and hyphens count; the first 20 characters are used, in lower case."
  type        = string
  default     = "script-runner"

  validation {
    condition     = can(regex("[a-zA-Z0-9].*[a-zA-Z0-9]", var.stack_name))
    error_message = "stack_name needs at least two letters or digits."
  }
}

variable "tags" {
  description = "Put on everything that can carry tags."
  type        = map(string)
  default     = {}
}

# The image

variable "image" {
  description = "Your image, with registry and without tag: example.azurecr.io/my-script. It holds script-runner, your script and config.json."
  type        = string
}

variable "image_tag" {
  description = "The image's tag. Use a new one for each build: the same tag again starts nothing anew."
  type        = string
}

variable "container_registry_id" {
  description = "Resource ID of the Azure Container Registry that holds the image; both apps may then pull from it by their identities. Null for a public image."
  type        = string
  default     = null
}

# Who may use it

variable "auth_provider" {
  description = "AUTH_PROVIDER: auth0, none (everyone who can reach it may run the script), or the word of a plug-in."
  type        = string

  validation {
    condition     = length(var.auth_provider) > 0
    error_message = "auth_provider must be said: auth0, none, or the word of a plug-in."
  }
}

variable "auth0_domain" {
  description = "AUTH0_DOMAIN: the tenant's bare host name."
  type        = string
  default     = null

  validation {
    condition     = var.auth_provider != "auth0" || (var.auth0_domain != null && var.auth0_domain != "")
    error_message = "auth_provider = \"auth0\" needs auth0_domain."
  }
}

variable "auth0_audience" {
  description = "AUTH0_API_AUDIENCE: the identifier of this API at Auth0."
  type        = string
  default     = null

  validation {
    condition     = var.auth_provider != "auth0" || (var.auth0_audience != null && var.auth0_audience != "")
    error_message = "auth_provider = \"auth0\" needs auth0_audience."
  }
}

variable "auth0_client_id" {
  description = "AUTH0_CLIENT_ID, for the page that signs people in."
  type        = string
  default     = null
}

# The name under which it is reached

variable "dns_subdomain" {
  description = "The label below dns_zone_name, for example scripts. Null: it is reached under Front Door's own name."
  type        = string
  default     = null

  validation {
    condition = (var.dns_subdomain == null) == (var.dns_zone_name == null) && (
      (var.dns_subdomain == null) == (var.dns_zone_resource_group_name == null)
    )
    error_message = "Give dns_subdomain, dns_zone_name and dns_zone_resource_group_name, or none of them."
  }

  validation {
    condition     = var.dns_subdomain == null || can(regex("^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", var.dns_subdomain))
    error_message = "dns_subdomain is a label such as scripts; the zone's own name cannot be an alias (CNAME)."
  }
}

variable "dns_zone_name" {
  description = "An existing public Azure DNS zone, for example example.org."
  type        = string
  default     = null
}

variable "dns_zone_resource_group_name" {
  description = "The resource group of that zone."
  type        = string
  default     = null
}

# The network

variable "create_network" {
  description = "Whether to make a virtual network. Null: yes, unless subnets are given. Say false where the subnets are made in the same run."
  type        = bool
  default     = null
}

variable "vnet_cidr" {
  description = "The addresses of the network that is made; a /16 to /22."
  type        = string
  default     = "10.60.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.vnet_cidr)) && try(tonumber(split("/", var.vnet_cidr)[1]), 0) >= 16 && try(tonumber(split("/", var.vnet_cidr)[1]), 99) <= 22
    error_message = "vnet_cidr is an IPv4 range of size /16 to /22, for example 10.60.0.0/16."
  }
}

variable "worker_subnet_id" {
  description = "An existing subnet, /27 or larger, used by nothing else and delegated to Microsoft.App/environments: server and workers run in it."
  type        = string
  default     = null

  validation {
    condition     = (var.worker_subnet_id == null) == (var.redis_subnet_id == null)
    error_message = "Give both worker_subnet_id and redis_subnet_id, or neither."
  }
}

variable "redis_subnet_id" {
  description = "An existing subnet, in the same virtual network, for the private endpoints of Redis, storage and Key Vault."
  type        = string
  default     = null
}

variable "private_dns_zone_ids" {
  description = "Private DNS zones that the network has already, by use: redis, blob, vault. The others are made and linked to the network."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(setsubtract(keys(var.private_dns_zone_ids), ["redis", "blob", "vault"])) == 0
    error_message = "private_dns_zone_ids knows redis, blob and vault."
  }
}

variable "zone_redundancy_enabled" {
  description = "Whether the apps and the files are spread over availability zones. Cannot be changed later."
  type        = bool
  default     = false
}

# Servers and workers

variable "server_cpu" {
  description = "vCPU of one server; memory must be twice as many Gi."
  type        = number
  default     = 0.5
}

variable "server_memory" {
  description = "Memory of one server."
  type        = string
  default     = "1Gi"
}

variable "server_min_replicas" {
  description = "Servers that always run."
  type        = number
  default     = 2

  validation {
    condition     = var.server_min_replicas >= 1
    error_message = "At least one server runs always: it reports the queue, on which the alerts stand."
  }
}

variable "server_max_replicas" {
  description = "The most servers."
  type        = number
  default     = 6

  validation {
    condition     = var.server_max_replicas >= var.server_min_replicas
    error_message = "server_max_replicas is at least server_min_replicas."
  }
}

variable "worker_cpu" {
  description = "vCPU of one worker, shared by the scripts that it runs at once; in the Consumption profile at most 4, and memory twice as many Gi."
  type        = number
  default     = 1
}

variable "worker_memory" {
  description = "Memory of one worker."
  type        = string
  default     = "2Gi"
}

variable "worker_concurrency" {
  description = "How many scripts one worker runs at once."
  type        = number
  default     = 1

  validation {
    condition     = var.worker_concurrency >= 1 && var.worker_concurrency <= 1000
    error_message = "worker_concurrency is 1 to 1000."
  }
}

variable "worker_min_replicas" {
  description = "Workers that always run; 0 saves money and costs the first task the start of a container."
  type        = number
  default     = 0
}

variable "worker_max_replicas" {
  description = "The most workers."
  type        = number
  default     = 10

  validation {
    condition     = var.worker_max_replicas >= max(1, var.worker_min_replicas)
    error_message = "worker_max_replicas is at least 1 and at least worker_min_replicas."
  }
}

variable "worker_cooldown_seconds" {
  description = "How long after the last task the last worker stays."
  type        = number
  default     = 300
}

variable "worker_drain_timeout_seconds" {
  description = "How long a worker that is to stop waits for its scripts. Azure kills it after 600 seconds, whatever is said here."
  type        = number
  default     = 540

  validation {
    condition     = var.worker_drain_timeout_seconds >= 0 && var.worker_drain_timeout_seconds + var.script_grace_seconds + 10 <= 600
    error_message = "worker_drain_timeout_seconds + script_grace_seconds + 10 must not exceed 600, Azure's longest grace period."
  }
}

variable "script_grace_seconds" {
  description = "The largest grace_seconds of your configuration: the time between TERM and KILL of a script."
  type        = number
  default     = 10
}

variable "worker_workload_profile" {
  description = "A dedicated workload profile for the workers, for more than 4 vCPU or 8 Gi: its type (for example D8) and how many machines. Null: Consumption, paid by use."
  type = object({
    type          = string
    minimum_count = optional(number, 0)
    maximum_count = optional(number, 3)
  })
  default = null
}

# What they are told

variable "environment_variables" {
  description = "More environment variables for servers and workers; yours win over the module's own. No secrets here."
  type        = map(string)
  default     = {}
}

variable "secrets" {
  description = "Environment variables of servers and workers, each with the name of the secret in the Key Vault key_vault_id that holds its value."
  type        = map(string)
  default     = {}
}

variable "worker_secrets" {
  description = "The same for the workers alone: what only the script needs."
  type        = map(string)
  default     = {}
}

# Key Vault

variable "key_vault_id" {
  description = "An existing Key Vault with role-based access that holds your secrets; the password of Redis is put there too. Null: one is made."
  type        = string
  default     = null
}

variable "key_vault_allowed_ip_ranges" {
  description = "Public addresses from which the Key Vault that is made may be reached, besides its private endpoint: that of the machine where Terraform runs, which writes the password of Redis. Empty: no public access at all."
  type        = list(string)
  default     = []
}

# Redis

variable "redis_sku_name" {
  description = "Size of Azure Managed Redis. Balanced_B0 is 0.5 GB, B1 is 1 GB, B3 is 3 GB. Redis holds the queue and the records, not rows or files."
  type        = string
  default     = "Balanced_B1"

  validation {
    condition     = !startswith(var.redis_sku_name, "FlashOptimized_")
    error_message = "A Flash tier is for large caches; take Balanced_, MemoryOptimized_ or ComputeOptimized_."
  }
}

variable "redis_high_availability_enabled" {
  description = "Whether Redis has a replica that takes over. Cannot be changed later."
  type        = bool
  default     = true
}

# Files

variable "artifacts_expiry_days" {
  description = "Files older than this are removed by the storage account, should the runner not have removed them by its own retention. More than the longest retention of your configuration."
  type        = number
  default     = 30

  validation {
    condition     = var.artifacts_expiry_days >= 2
    error_message = "artifacts_expiry_days is at least 2: the default retention is one day."
  }
}

# Logs and alerts

variable "log_retention_days" {
  description = "How long logs are kept."
  type        = number
  default     = 30

  validation {
    condition     = var.log_retention_days >= 30 && var.log_retention_days <= 730
    error_message = "log_retention_days is 30 to 730."
  }
}

variable "alert_emails" {
  description = "Who gets the alerts by mail."
  type        = list(string)
  default     = []
}

variable "alert_action_group_ids" {
  description = "Existing action groups that get the alerts too."
  type        = list(string)
  default     = []
}

variable "alert_oldest_queued_seconds" {
  description = "An alert when a task has waited for longer."
  type        = number
  default     = 900
}

variable "alert_failed_tasks" {
  description = "An alert when more tasks failed, timed out or were lost in 15 minutes."
  type        = number
  default     = 5
}
