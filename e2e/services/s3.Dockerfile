# The S3-compatible server of docker-compose.yml, built and run by the same scripts as in the end-to-end tests.
FROM golang:1.26-bookworm AS build
COPY e2e/services /services
RUN mkdir /out && cp "$(/services/install_s3.sh /tmp/build)" /out/versitygw

FROM debian:bookworm-slim
COPY --from=build /out/versitygw /usr/local/bin/versitygw
COPY e2e/services/run_s3.sh /usr/local/bin/run_s3.sh
RUN useradd --uid 10002 --create-home s3 && install --directory --owner s3 /data
USER s3
ENV VERSITYGW=/usr/local/bin/versitygw
VOLUME /data
EXPOSE 9000
ENTRYPOINT ["/usr/local/bin/run_s3.sh"]
CMD ["0.0.0.0:9000", "/data", "lake"]
