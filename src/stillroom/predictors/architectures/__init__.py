"""Systems that change what a network is made of: early exits, attention, experts, spikes, few bits."""
