"""What several nodes share: sockets and inputs."""
