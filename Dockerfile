# cgdpm-med in a container; see docs/integration.md
FROM python:3.11-slim

WORKDIR /opt/cgdpm_med
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt .

# matplotlib and MONAI want a place of their own, whoever the user is
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /
USER 1000:1000
ENTRYPOINT ["cgdpm-med"]
