# The example can be planned as it stands.

mock_provider "azurerm" {}

run "plan" {
  command = plan

  variables {
    subscription_id       = "00000000-0000-0000-0000-000000000000"
    image                 = "example.azurecr.io/plates"
    image_tag             = "1"
    container_registry_id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerRegistry/registries/example"
    my_ip_address         = "203.0.113.7"
    alert_email           = "you@example.org"
  }

  assert {
    condition     = output.url == "https://scripts.example.org"
    error_message = "The example is reached elsewhere."
  }
}
