"""The paper: schedule, sampling, guidance, ensemble, losses. Needs torch alone."""
