"""Where devices and the service meet: the MQTT broker, who may do what on it, and the service's own session."""
