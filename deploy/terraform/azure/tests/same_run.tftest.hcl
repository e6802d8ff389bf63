# The module within a larger configuration, where IDs are known only once things are made.

mock_provider "azurerm" {
  mock_resource "azurerm_subnet" {
    defaults = {
      id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/own/subnets/one"
    }
  }
}

run "subnets_of_the_same_run" {
  module {
    source = "./tests/same_run"
  }

  assert {
    condition     = output.virtual_network_id == "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/own"
    error_message = "The network of the given subnets is not found."
  }
}
