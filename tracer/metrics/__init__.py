"""What a fleet's monitoring reads: an account as metrics, for a file, a scrape, or a backfill."""
