# Which Terraform and which provider this module was written for.

terraform {
  # 1.9: a validation may look at other variables
  required_version = ">= 1.9"

  required_providers {
    azurerm = {
      source = "hashicorp/azurerm"
      # major version 5; 5.10 is the one whose schema the tests hold this module against
      version = "~> 5.10"
    }
  }
}
