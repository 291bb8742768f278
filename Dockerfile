# The server on a processor:  docker build -t yolov5-biformer . && docker run -p 5000:5000 -v "$PWD/best.pt:/weights/best.pt:ro" yolov5-biformer
# Weights are mounted, not copied: one image serves all of them. docs/serving.md says more.
FROM python:3.12-slim

# OpenCV's wheel brings everything but these two
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements.txt .
# What other formats than .pt need: --build-arg EXTRA="onnxruntime openvino"
ARG EXTRA=""
# The usual build of PyTorch has gigabytes of CUDA with it: where to find the one for CPUs alone goes here
ARG TORCH_INDEX=""
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"; fi \
 && pip install --no-cache-dir -r requirements.txt "fastapi>=0.115" "uvicorn>=0.32" "python-multipart>=0.0.20" "prometheus-client>=0.21" $EXTRA

COPY serve.py .
COPY models models
COPY utils utils
COPY data data

RUN useradd --create-home --uid 1000 server
USER server
ENV PYTHONUNBUFFERED=1

EXPOSE 5000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "serve.py", "--host", "0.0.0.0", "--port", "5000"]
CMD ["--weights", "/weights/best.pt", "--device", "cpu"]
