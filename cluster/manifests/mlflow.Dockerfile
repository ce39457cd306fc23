# The MLflow server of mlflow-compose.yaml, without PyTorch. `docker compose` builds it with this folder as context.
FROM python:3.12-slim-bookworm

COPY mlflow-server.lock /tmp/
RUN python -m pip install --no-cache-dir --require-hashes --no-deps -r /tmp/mlflow-server.lock

RUN useradd --create-home --uid 10002 mlflow
USER 10002:10002
WORKDIR /home/mlflow
EXPOSE 5000
CMD ["mlflow", "server", "--help"]
