# Where everything stands: a VPC of its own or yours, and who may talk to whom.

locals {
  makes_network = length(var.vpc_public_subnet_ids) == 0
  zones         = local.makes_network ? slice(data.aws_availability_zones.available[0].names, 0, var.zone_count) : []

  vpc_id              = local.makes_network ? aws_vpc.this[0].id : var.vpc_id
  public_subnet_ids   = local.makes_network ? aws_subnet.public[*].id : var.vpc_public_subnet_ids
  database_subnet_ids = local.makes_network ? aws_subnet.database[*].id : length(var.vpc_database_subnet_ids) > 0 ? var.vpc_database_subnet_ids : var.vpc_private_subnet_ids

  # the original's variables know no private subnets: then tasks stand where it put them
  are_tasks_public = !local.makes_network && length(var.vpc_private_subnet_ids) == 0
  task_subnet_ids  = local.makes_network ? aws_subnet.private[*].id : local.are_tasks_public ? var.vpc_public_subnet_ids : var.vpc_private_subnet_ids
}

check "tasks_in_private_subnets" {
  assert {
    condition     = !local.are_tasks_public
    error_message = "Servers and workers stand in public subnets with public addresses (nothing reaches them but the load balancer): give vpc_private_subnet_ids."
  }
}

data "aws_availability_zones" "available" {
  count = local.makes_network ? 1 : 0

  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

resource "aws_vpc" "this" {
  count = local.makes_network ? 1 : 0

  cidr_block           = var.vpc_cidr
  enable_dns_hostnames = true
  enable_dns_support   = true
  tags                 = merge(local.tags, { Name = local.name })
}

# nobody uses it, and so it lets nothing through
resource "aws_default_security_group" "this" {
  count = local.makes_network ? 1 : 0

  vpc_id = aws_vpc.this[0].id
  tags   = merge(local.tags, { Name = "${local.name}-unused" })
}

resource "aws_subnet" "public" {
  count = local.makes_network ? var.zone_count : 0

  vpc_id            = aws_vpc.this[0].id
  availability_zone = local.zones[count.index]
  cidr_block        = cidrsubnet(var.vpc_cidr, 4, count.index)
  tags              = merge(local.tags, { Name = "${local.name}-public-${local.zones[count.index]}" })
}

resource "aws_subnet" "private" {
  count = local.makes_network ? var.zone_count : 0

  vpc_id            = aws_vpc.this[0].id
  availability_zone = local.zones[count.index]
  cidr_block        = cidrsubnet(var.vpc_cidr, 4, 4 + count.index)
  tags              = merge(local.tags, { Name = "${local.name}-private-${local.zones[count.index]}" })
}

resource "aws_subnet" "database" {
  count = local.makes_network ? var.zone_count : 0

  vpc_id            = aws_vpc.this[0].id
  availability_zone = local.zones[count.index]
  cidr_block        = cidrsubnet(var.vpc_cidr, 4, 8 + count.index)
  tags              = merge(local.tags, { Name = "${local.name}-database-${local.zones[count.index]}" })
}

resource "aws_internet_gateway" "this" {
  count = local.makes_network ? 1 : 0

  vpc_id = aws_vpc.this[0].id
  tags   = merge(local.tags, { Name = local.name })
}

resource "aws_route_table" "public" {
  count = local.makes_network ? 1 : 0

  vpc_id = aws_vpc.this[0].id
  tags   = merge(local.tags, { Name = "${local.name}-public" })
}

resource "aws_route" "internet" {
  count = local.makes_network ? 1 : 0

  route_table_id         = aws_route_table.public[0].id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this[0].id
}

resource "aws_route_table_association" "public" {
  count = local.makes_network ? var.zone_count : 0

  subnet_id      = aws_subnet.public[count.index].id
  route_table_id = aws_route_table.public[0].id
}

locals {
  nat_count = local.makes_network ? (var.nat_gateway_per_zone ? var.zone_count : 1) : 0
}

resource "aws_eip" "nat" {
  count = local.nat_count

  domain = "vpc"
  tags   = merge(local.tags, { Name = "${local.name}-nat-${count.index}" })
}

resource "aws_nat_gateway" "this" {
  count = local.nat_count

  allocation_id = aws_eip.nat[count.index].id
  subnet_id     = aws_subnet.public[count.index].id
  tags          = merge(local.tags, { Name = "${local.name}-${count.index}" })

  depends_on = [aws_internet_gateway.this]
}

resource "aws_route_table" "private" {
  count = local.makes_network ? var.zone_count : 0

  vpc_id = aws_vpc.this[0].id
  tags   = merge(local.tags, { Name = "${local.name}-private-${local.zones[count.index]}" })
}

resource "aws_route" "out" {
  count = local.makes_network ? var.zone_count : 0

  route_table_id         = aws_route_table.private[count.index].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[min(count.index, local.nat_count - 1)].id
}

resource "aws_route_table_association" "private" {
  count = local.makes_network ? var.zone_count : 0

  subnet_id      = aws_subnet.private[count.index].id
  route_table_id = aws_route_table.private[count.index].id
}

# Redis answers, and calls nobody: its subnets have no route out of the VPC
resource "aws_route_table" "database" {
  count = local.makes_network ? 1 : 0

  vpc_id = aws_vpc.this[0].id
  tags   = merge(local.tags, { Name = "${local.name}-database" })
}

resource "aws_route_table_association" "database" {
  count = local.makes_network ? var.zone_count : 0

  subnet_id      = aws_subnet.database[count.index].id
  route_table_id = aws_route_table.database[0].id
}

# artifacts go to S3 past the NAT gateway, which takes money for each byte
resource "aws_vpc_endpoint" "s3" {
  count = local.makes_network ? 1 : 0

  vpc_id            = aws_vpc.this[0].id
  service_name      = "com.amazonaws.${local.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = aws_route_table.private[*].id
  tags              = merge(local.tags, { Name = "${local.name}-s3" })
}

# Who may talk to whom: the world → load balancer → server → Redis ← worker

resource "aws_security_group" "load_balancer" {
  name_prefix = "${local.name}-load-balancer-"
  description = "The load balancer of ${local.name}"
  vpc_id      = local.vpc_id
  tags        = merge(local.tags, { Name = "${local.name}-load-balancer" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_security_group" "server" {
  name_prefix = "${local.name}-server-"
  description = "The servers of ${local.name}"
  vpc_id      = local.vpc_id
  tags        = merge(local.tags, { Name = "${local.name}-server" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_security_group" "worker" {
  name_prefix = "${local.name}-worker-"
  description = "The workers of ${local.name}: nothing comes in"
  vpc_id      = local.vpc_id
  tags        = merge(local.tags, { Name = "${local.name}-worker" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "world" {
  for_each = { for pair in setproduct(["80", "443"], var.allowed_cidrs) : join(" ", pair) => { port = tonumber(pair[0]), cidr = pair[1] } }

  security_group_id = aws_security_group.load_balancer.id
  description       = each.value.port == 80 ? "answered by a redirection to HTTPS" : "HTTPS"
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
  cidr_ipv4         = each.value.cidr
  tags              = local.tags
}

resource "aws_vpc_security_group_egress_rule" "load_balancer_to_server" {
  security_group_id            = aws_security_group.load_balancer.id
  description                  = "to servers"
  ip_protocol                  = "tcp"
  from_port                    = local.server_port
  to_port                      = local.server_port
  referenced_security_group_id = aws_security_group.server.id
  tags                         = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "server_from_load_balancer" {
  security_group_id            = aws_security_group.server.id
  description                  = "from the load balancer"
  ip_protocol                  = "tcp"
  from_port                    = local.server_port
  to_port                      = local.server_port
  referenced_security_group_id = aws_security_group.load_balancer.id
  tags                         = local.tags
}

resource "aws_vpc_security_group_egress_rule" "server_https" {
  security_group_id = aws_security_group.server.id
  description       = "S3, ECR, logs, secrets, keys of the token issuer"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = "0.0.0.0/0"
  tags              = local.tags
}

resource "aws_vpc_security_group_egress_rule" "server_to_redis" {
  security_group_id            = aws_security_group.server.id
  description                  = "to Redis"
  ip_protocol                  = "tcp"
  from_port                    = var.redis_port
  to_port                      = var.redis_port
  referenced_security_group_id = var.create_redis ? aws_security_group.redis[0].id : null
  cidr_ipv4                    = var.create_redis ? null : "0.0.0.0/0"
  tags                         = local.tags
}

resource "aws_vpc_security_group_egress_rule" "worker_to_redis" {
  security_group_id            = aws_security_group.worker.id
  description                  = "to Redis"
  ip_protocol                  = "tcp"
  from_port                    = var.redis_port
  to_port                      = var.redis_port
  referenced_security_group_id = var.create_redis ? aws_security_group.redis[0].id : null
  cidr_ipv4                    = var.create_redis ? null : "0.0.0.0/0"
  tags                         = local.tags
}

resource "aws_vpc_security_group_egress_rule" "worker" {
  for_each = toset(var.worker_egress_cidrs)

  security_group_id = aws_security_group.worker.id
  description       = "what scripts call; S3, ECR, logs, secrets"
  ip_protocol       = "-1"
  cidr_ipv4         = each.value
  tags              = local.tags
}
