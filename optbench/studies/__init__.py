"""What particular suites add to a run's report: one folder per study, with its statistics, tables and figures."""
