"""Commands other than trainings: inspect, pack, compare, convert and measure."""
