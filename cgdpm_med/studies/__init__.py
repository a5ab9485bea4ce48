"""From folders to studies, and what is written of them."""
