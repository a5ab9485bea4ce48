"""The paper: schedule, sampling, guidance, ensemble, losses. Needs torch and numpy only."""
