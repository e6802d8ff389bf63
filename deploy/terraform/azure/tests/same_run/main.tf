# A caller who makes the network in the same run as the module: no ID is known while Terraform plans.

terraform {
  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 5.10"
    }
  }
}

resource "azurerm_virtual_network" "own" {
  name                = "own"
  location            = "westeurope"
  resource_group_name = "scripts"
  address_space       = ["10.1.0.0/16"]
}

resource "azurerm_subnet" "own" {
  for_each = { apps = "10.1.0.0/23", endpoints = "10.1.2.0/24" }

  name                 = each.key
  resource_group_name  = "scripts"
  virtual_network_name = azurerm_virtual_network.own.name
  address_prefixes     = [each.value]
}

module "script_runner" {
  source = "../.."

  location            = "westeurope"
  resource_group_name = "scripts"
  image               = "example/plates"
  image_tag           = "1"
  auth_provider       = "none"
  create_network      = false
  worker_subnet_id    = azurerm_subnet.own["apps"].id
  redis_subnet_id     = azurerm_subnet.own["endpoints"].id
}

output "virtual_network_id" {
  value = module.script_runner.virtual_network_id
}
