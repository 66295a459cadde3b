"""fermarsi: train for as long as it pays, keep the best model, resume exactly."""
