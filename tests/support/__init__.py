"""What several tests share: networks, gates as cases, trained runs, oracles, scripts that run in other processes."""
