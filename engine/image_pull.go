package engine

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/image"
)

// PullImage brings an image and returns its ID. Pulls of the same image join;
// one ends when nobody waits for it any more.
func (e *Engine) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if _, err := e.handler(req.Image.RuntimeHandler); err != nil {
		return nil, err
	}
	auth, err := registryAuth(req.Auth)
	if err != nil {
		return nil, err
	}
	img, err := e.cfg.Images.Pull(ctx, req.Image.Image, auth)
	if err != nil {
		return nil, pullError(ctx, err)
	}
	e.log.Info("image is pulled", "image", img.ID, "name", req.Image.Image)
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// pullError gives a pull's error the form that the kubelet understands: it
// looks for known words at the beginning of an error of class Unknown.
func pullError(ctx context.Context, err error) error {
	var p *image.PullError
	switch {
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case !errors.As(err, &p):
		return err
	case p.Reason == image.ReasonInvalidName:
		return cri.Errorf(codes.InvalidArgument, "%v", err)
	case p.Reason == image.ReasonNotFound:
		return cri.Errorf(codes.NotFound, "%v", err)
	}
	return fmt.Errorf("%s: %w", p.Reason, err)
}

// registryAuth translates credentials; auth is base64 of "user:password".
func registryAuth(a *runtimeapi.AuthConfig) (image.Auth, error) {
	auth := image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
	if a.GetAuth() == "" || auth.Username != "" {
		return auth, nil
	}
	b, err := base64.StdEncoding.DecodeString(a.Auth)
	user, password, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return image.Auth{}, cri.Errorf(codes.InvalidArgument, "auth.auth is not base64 of user:password")
	}
	auth.Username, auth.Password = user, strings.Trim(password, "\x00")
	return auth, nil
}
