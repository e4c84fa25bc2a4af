"""What several tests share: probe tasks, and references written as plain loops."""
