"""What model calls cost: prices, the ledger, budgets and caps that stop before the spend, closed providers."""
