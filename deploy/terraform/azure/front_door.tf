# Front Door Standard: the name, its certificate (made and renewed by Azure) and HTTP to HTTPS.
#
# Container Apps' own managed certificates are not used: the provider cannot bind one to an app, which leaves a
# command to be typed between two runs.

locals {
  has_domain = var.dns_subdomain != null
  host_name  = local.has_domain ? "${var.dns_subdomain}.${var.dns_zone_name}" : azurerm_cdn_frontdoor_endpoint.this.host_name
}

resource "azurerm_cdn_frontdoor_profile" "this" {
  name                     = local.name
  resource_group_name      = var.resource_group_name
  sku_name                 = "Standard_AzureFrontDoor"
  response_timeout_seconds = 240
  tags                     = var.tags
}

resource "azurerm_cdn_frontdoor_endpoint" "this" {
  name                     = "${local.name}-${local.suffix}"
  cdn_frontdoor_profile_id = azurerm_cdn_frontdoor_profile.this.id
  tags                     = var.tags
}

resource "azurerm_cdn_frontdoor_origin_group" "this" {
  name                     = "server"
  cdn_frontdoor_profile_id = azurerm_cdn_frontdoor_profile.this.id
  session_affinity_enabled = false

  load_balancing {}

  health_probe {
    protocol            = "Https"
    path                = "/health"
    request_type        = "GET"
    interval_in_seconds = 100
  }
}

resource "azurerm_cdn_frontdoor_origin" "this" {
  name                           = "server"
  cdn_frontdoor_origin_group_id  = azurerm_cdn_frontdoor_origin_group.this.id
  enabled                        = true
  host_name                      = azurerm_container_app.server.ingress[0].fqdn
  origin_host_header             = azurerm_container_app.server.ingress[0].fqdn
  certificate_name_check_enabled = true
}

resource "azurerm_cdn_frontdoor_route" "this" {
  name                            = "all"
  cdn_frontdoor_endpoint_id       = azurerm_cdn_frontdoor_endpoint.this.id
  cdn_frontdoor_origin_group_id   = azurerm_cdn_frontdoor_origin_group.this.id
  cdn_frontdoor_origin_ids        = [azurerm_cdn_frontdoor_origin.this.id]
  cdn_frontdoor_custom_domain_ids = azurerm_cdn_frontdoor_custom_domain.this[*].id
  link_to_default_domain          = !local.has_domain
  patterns_to_match               = ["/*"]
  supported_protocols             = ["Http", "Https"]
  https_redirect_enabled          = true
  forwarding_protocol             = "HttpsOnly"
}

resource "azurerm_cdn_frontdoor_custom_domain" "this" {
  count = local.has_domain ? 1 : 0

  name                     = replace("${var.dns_subdomain}.${var.dns_zone_name}", ".", "-")
  cdn_frontdoor_profile_id = azurerm_cdn_frontdoor_profile.this.id
  host_name                = local.host_name

  tls {
    certificate_type = "ManagedCertificate"
    minimum_version  = "TLS12"
  }
}

resource "azurerm_cdn_frontdoor_custom_domain_association" "this" {
  count = local.has_domain ? 1 : 0

  cdn_frontdoor_custom_domain_id = azurerm_cdn_frontdoor_custom_domain.this[0].id
  cdn_frontdoor_route_ids        = [azurerm_cdn_frontdoor_route.this.id]
}

# proves to Azure that the name is yours
resource "azurerm_dns_txt_record" "validation" {
  count = local.has_domain ? 1 : 0

  name                = "_dnsauth.${var.dns_subdomain}"
  zone_name           = var.dns_zone_name
  resource_group_name = var.dns_zone_resource_group_name
  ttl                 = 3600
  tags                = var.tags

  record {
    value = azurerm_cdn_frontdoor_custom_domain.this[0].validation_token
  }
}

resource "azurerm_dns_cname_record" "this" {
  count = local.has_domain ? 1 : 0

  name                = var.dns_subdomain
  zone_name           = var.dns_zone_name
  resource_group_name = var.dns_zone_resource_group_name
  ttl                 = 300
  record              = azurerm_cdn_frontdoor_endpoint.this.host_name
  tags                = var.tags

  # a name that points at an endpoint without a route answers 404
  depends_on = [azurerm_cdn_frontdoor_route.this]
}
