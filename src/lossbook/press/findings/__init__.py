"""What runs found: ledgers, tables, figures of sweeps, records, and two runs side by side."""
