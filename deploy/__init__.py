"""What operators take: how the servers are put into containers and started on clusters."""
