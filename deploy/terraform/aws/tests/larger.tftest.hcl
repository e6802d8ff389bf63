# The module where what it is given is not known yet.

mock_provider "aws" {
  source = "./tests/mocks"
}

run "nothing_is_known_when_it_is_planned" {
  command = plan

  module {
    source = "./tests/larger"
  }
}
