"""The kill matrix: real programs, hurt at random moments, and a ledger of their own that tells what truly ran."""
