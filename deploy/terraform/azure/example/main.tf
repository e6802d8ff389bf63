# An example: everything from nothing, under a name of your own, with sign-in by Auth0.

terraform {
  required_version = ">= 1.9"

  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 5.10"
    }
  }
}

provider "azurerm" {
  subscription_id     = var.subscription_id
  storage_use_azuread = true # the storage account has no keys

  # version 5 registers nothing by itself
  resource_providers_to_register = [
    "Microsoft.App",
    "Microsoft.Cache",
    "Microsoft.Cdn",
    "Microsoft.Insights",
    "Microsoft.KeyVault",
    "Microsoft.ManagedIdentity",
    "Microsoft.Network",
    "Microsoft.OperationalInsights",
    "Microsoft.Storage",
  ]

  features {}
}

variable "subscription_id" {
  description = "The subscription that pays."
  type        = string
}

variable "image" {
  description = "Your image, without tag."
  type        = string
}

variable "image_tag" {
  description = "Its tag."
  type        = string
}

variable "container_registry_id" {
  description = "The registry that holds it, an Azure Container Registry. Null for a public image."
  type        = string
  default     = null
}

variable "my_ip_address" {
  description = "The public address of the machine where Terraform runs, which puts the password of Redis into the Key Vault."
  type        = string
}

variable "alert_email" {
  description = "Who hears of trouble."
  type        = string
}

resource "azurerm_resource_group" "this" {
  name     = "script-runner"
  location = "westeurope"
}

module "script_runner" {
  source = "../"

  location            = azurerm_resource_group.this.location
  resource_group_name = azurerm_resource_group.this.name
  stack_name          = "script-runner"
  image               = var.image
  image_tag           = var.image_tag

  container_registry_id = var.container_registry_id

  auth_provider  = "auth0"
  auth0_domain   = "example.eu.auth0.com"
  auth0_audience = "https://scripts.example.org"

  dns_subdomain                = "scripts"
  dns_zone_name                = "example.org"
  dns_zone_resource_group_name = "dns"

  worker_cpu          = 2
  worker_memory       = "4Gi"
  worker_max_replicas = 20

  key_vault_allowed_ip_ranges = [var.my_ip_address]
  alert_emails                = [var.alert_email]

  tags = { application = "script-runner" }
}

output "url" {
  description = "Where it is reached."
  value       = module.script_runner.url
}
